// Log lines for operators on stderr: time, level, message. The level comes from DOUGONG_LOG_LEVEL or --log-level.
#pragma once
#include <string_view>

namespace dg {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

void set_log_level(LogLevel level);
void log_debug(std::string_view message);
void log_info(std::string_view message);
void log_warning(std::string_view message);
void log_error(std::string_view message);

}  // namespace dg
