#include "io/error_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace dg {
namespace {

// Length of the well-formed UTF-8 sequence at the start of `text`, 0 when there is none.
size_t utf8_length(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  unsigned char lead = byte(0);
  size_t length = lead < 0x80 ? 1 : lead >= 0xC2 && lead < 0xE0 ? 2 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; i++)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  bool surrogate_or_beyond = (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF4 && byte(1) > 0x8F);
  return overlong || surrogate_or_beyond ? 0 : length;
}

}  // namespace

std::string quote_text(std::string_view text, size_t max_bytes) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    size_t length = utf8_length(text.substr(i));
    if (i + std::max<size_t>(length, 1) > max_bytes) return out += "...\"";
    auto byte = static_cast<unsigned char>(text[i]);
    if (length == 0 || byte < 0x20 || byte == 0x7F) out += fmt::format("\\x{:02x}", byte);
    else if (byte == '"' || byte == '\\') (out += '\\') += text[i];
    else out += text.substr(i, length);
    i += std::max<size_t>(length, 1);
  }
  return out += '"';
}

Error system_error(std::string_view path, std::string_view action, int error_number) {
  std::string reason = std::generic_category().message(error_number);
  ErrorKind kind = ErrorKind::kIo;
  switch (error_number) {
    case ELOOP: reason = "the symbolic links form a loop; replace the link by the file it should name"; break;
    case EACCES: reason = "permission denied; let this user read it (chmod, chown or run as its owner)"; break;
    case EMFILE:
    case ENFILE:
      kind = ErrorKind::kResource;
      reason = "too many open files; raise the limit (ulimit -n)";
      break;
    case ENOMEM:
      kind = ErrorKind::kResource;
      reason = "not enough memory or address space; check ulimit -v and vm.max_map_count";
      break;
    default: break;
  }
  return {kind, fmt::format("{}: {}: {}", path, action, reason)};
}

}  // namespace dg
