// Lines of standard input for the commands that read many: without editing, and with (chat on a terminal).
#pragma once
#include <memory>
#include <string>

#include "base/result.h"

namespace dg {

class LineReader {
 public:
  enum class Status { kLine, kEnd, kInterrupted };
  virtual ~LineReader() = default;
  // Without the newline. kInterrupted: Ctrl-C while an InterruptScope lives; what was typed is dropped.
  virtual Status read(const std::string& prompt, std::string* line) = 0;
  // Adds a line to the history that the arrow keys bring back.
  virtual void remember(const std::string& line) = 0;
};

// Reads the file descriptor of standard input; prints no prompt. A line longer than `max_bytes` is cut there.
std::unique_ptr<LineReader> make_plain_line_reader(size_t max_bytes = size_t{64} << 20);

// Editing and history where the line editor library is there, else the terminal's own. The history lives in
// $XDG_STATE_HOME/dougong/`history_name` (~/.local/state without that variable); a directory that cannot be written is
// no error.
std::unique_ptr<LineReader> make_terminal_line_reader(const std::string& history_name);

// All of standard input, as it is.
Result<std::string> read_standard_input(size_t max_bytes = size_t{64} << 20);

}  // namespace dg
