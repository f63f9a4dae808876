// The text of HTTP that needs no socket: response heads, percent-decoding, identifiers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dg {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct ResponseHead {
  int status = 200;
  std::string_view content_type;  // "": none
  int64_t content_length = -1;    // -1: unknown, the end of the connection or the last chunk ends the body
  bool chunked = false;
  bool close = false;     // Connection: close
  bool http_1_0 = false;  // the client speaks 1.0: keep-alive must be said
  std::string_view request_id;
  const HttpHeaders* headers = nullptr;  // of the handler; one with a line break in it is left out
  const HttpHeaders* cors = nullptr;
};
std::string render_head(const ResponseHead& head);

const char* status_reason(int status);  // "Not Found"; "Status" when unknown

// nullopt: a bad escape, or a NUL byte.
std::optional<std::string> percent_decode(std::string_view text);

bool valid_request_id(std::string_view id);      // [A-Za-z0-9._:-]{1,128}
std::string make_request_id();                   // "req-" and 24 hex digits
bool valid_traceparent(std::string_view value);  // W3C trace context, version 00
std::string hex(std::string_view bytes);         // lower case
bool equal_ignoring_case(std::string_view a, std::string_view lower_b);
bool has_token(std::string_view list, std::string_view lower_token);  // of a comma-separated header value

}  // namespace dg
