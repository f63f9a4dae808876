#include "server/api/json_writer.h"

#include <fmt/core.h>

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <random>

#include "text/unicode.h"

namespace dg::api {
namespace {

template <class T>
void append_finite(std::string& out, T value) {
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  out.append(buffer, end);
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t plain = 0;  // where the text that needs no escape begins
  size_t i = 0;
  auto flush = [&] { out.append(text, plain, i - plain); };
  while (i < text.size()) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\' && c != 0x7f) {
      i++;
      continue;
    }
    if (c >= 0x80) {
      const unicode::Decoded character = unicode::decode(text.data() + i, text.data() + text.size());
      if (!character.valid) {
        flush();
        out += "\xEF\xBF\xBD";
        plain = i + character.bytes;
      }
      i += character.bytes;
      continue;
    }
    flush();
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default: {
        constexpr char kDigits[] = "0123456789abcdef";
        out += "\\u00";
        out += kDigits[c >> 4];
        out += kDigits[c & 15];
      }
    }
    plain = ++i;
  }
  flush();
  out += '"';
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

void append_json_number(std::string& out, double value) { append_finite(out, std::isfinite(value) ? value : -9999.0); }
void append_json_float(std::string& out, float value) { append_finite(out, std::isfinite(value) ? value : -9999.0f); }

void append_json_ids(std::string& out, std::span<const int32_t> ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); i++) {
    if (i > 0) out += ',';
    append_finite(out, ids[i]);
  }
  out += ']';
}

void append_sse(std::string& out, std::string_view json) {
  out += "data: ";
  out += json;
  out += "\n\n";
}

void append_sse(std::string& out, std::string_view event, std::string_view json) {
  out += "event: ";
  out += event;
  out += '\n';
  append_sse(out, json);
}

std::string shown_token(std::string_view bytes) {
  if (unicode::first_invalid(bytes) == std::string_view::npos) return std::string(bytes);
  std::string out = "bytes:";
  for (unsigned char byte : bytes) out += fmt::format("\\x{:02x}", byte);
  return out;
}

std::string base64(std::span<const float> values) {
  constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  bytes.reserve(values.size() * 4);
  for (float value : values) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(bits >> shift & 255);
  }
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    size_t have = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; k++) group = group << 8 | (k < have ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; k++) out += k <= have ? kAlphabet[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

std::string random_hex(size_t digits) {
  thread_local std::mt19937_64 random = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  std::string out;
  while (out.size() < digits) out += fmt::format("{:016x}", random());
  out.resize(digits);
  return out;
}

}  // namespace dg::api
