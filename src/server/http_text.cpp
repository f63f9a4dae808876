#include "server/http_text.h"

#include <fmt/core.h>
#include <openssl/rand.h>

#include <algorithm>
#include <ctime>

#include "base/check.h"

namespace dg {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// A line break would let a value that quotes the client add headers of its own.
bool safe_header(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; });
}

void append_headers(std::string& out, const HttpHeaders* headers) {
  if (headers == nullptr) return;
  for (const auto& [name, value] : *headers) {
    if (!name.empty() && safe_header(name) && safe_header(value)) out.append(name).append(": ").append(value).append("\r\n");
  }
}

// One date per second and thread: strftime is slow next to the rest of a head.
const std::string& http_date() {
  thread_local std::time_t second = 0;
  thread_local std::string text;
  std::time_t now = std::time(nullptr);
  if (now != second) {
    std::tm parts{};
    gmtime_r(&now, &parts);
    static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    text = fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[parts.tm_wday], parts.tm_mday, kMonths[parts.tm_mon],
                       parts.tm_year + 1900, parts.tm_hour, parts.tm_min, parts.tm_sec);
    second = now;
  }
  return text;
}

bool lower_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

const char* status_reason(int status) {
  switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 499: return "Client Closed Request";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Status";
  }
}

std::string render_head(const ResponseHead& head) {
  std::string out;
  out.reserve(320);
  out += fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nServer: dougong\r\n", head.status, status_reason(head.status), http_date());
  const bool bodiless = head.status == 204 || head.status == 304;
  if (!head.content_type.empty() && !bodiless && safe_header(head.content_type)) {
    out.append("Content-Type: ").append(head.content_type).append("\r\n");
  }
  if (!bodiless) {
    if (head.content_length >= 0) {
      out += fmt::format("Content-Length: {}\r\n", head.content_length);
    } else if (head.chunked) {
      out += "Transfer-Encoding: chunked\r\n";
    }
  }
  if (head.close) {
    out += "Connection: close\r\n";
  } else if (head.http_1_0) {
    out += "Connection: keep-alive\r\n";
  }
  if (!head.request_id.empty()) out.append("x-request-id: ").append(head.request_id).append("\r\n");
  append_headers(out, head.cors);
  append_headers(out, head.headers);
  out += "\r\n";
  return out;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (text.size() - i < 3) return std::nullopt;
    const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0 || high + low == 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

bool valid_request_id(std::string_view id) {
  if (id.empty() || id.size() > 128) return false;
  return std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') || c == '.' || c == '_' || c == ':' || c == '-';
  });
}

std::string hex(std::string_view bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (unsigned char c : bytes) {
    out += kDigits[c >> 4];
    out += kDigits[c & 15];
  }
  return out;
}

std::string make_request_id() {
  char bytes[12];
  // Without entropy the process could not have started TLS or made keys either: a broken system, not a user's mistake.
  CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(bytes), sizeof bytes) == 1);
  return "req-" + hex({bytes, sizeof bytes});
}

bool valid_traceparent(std::string_view value) {
  // 00-<32 hex trace id>-<16 hex parent id>-<2 hex flags>
  if (value.size() != 55 || value.substr(0, 3) != "00-" || value[35] != '-' || value[52] != '-') return false;
  const std::string_view trace = value.substr(3, 32), parent = value.substr(36, 16), flags = value.substr(53);
  if (!lower_hex(trace) || !lower_hex(parent) || !lower_hex(flags)) return false;
  return trace.find_first_not_of('0') != trace.npos && parent.find_first_not_of('0') != parent.npos;
}

bool equal_ignoring_case(std::string_view a, std::string_view lower_b) {
  return a.size() == lower_b.size() && std::equal(a.begin(), a.end(), lower_b.begin(), [](char x, char y) { return lower(x) == y; });
}

bool has_token(std::string_view list, std::string_view lower_token) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (!item.empty() && (item.front() == ' ' || item.front() == '\t')) item.remove_prefix(1);
    while (!item.empty() && (item.back() == ' ' || item.back() == '\t')) item.remove_suffix(1);
    if (equal_ignoring_case(item, lower_token)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

}  // namespace dg
