// JSON appended to a std::string: what is written once per token. (Reading, and anything written once per request, may use
// base/json.h.) Every function writes valid UTF-8 JSON whatever the input is.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace dg::api {

// A string with its quotes; ill-formed UTF-8 becomes U+FFFD, one per maximal subpart.
void append_json_string(std::string& out, std::string_view text);
std::string json_string(std::string_view text);
// The shortest text that reads back as the same number. JSON has no NaN or infinity: they become -9999, as vLLM writes the
// logarithm of an impossible token.
void append_json_number(std::string& out, double value);
void append_json_float(std::string& out, float value);
void append_json_ids(std::string& out, std::span<const int32_t> ids);  // [1,2,3]

// Appends `data: JSON\n\n`, or with a name `event: NAME\ndata: JSON\n\n`. JSON on one line.
void append_sse(std::string& out, std::string_view json);
void append_sse(std::string& out, std::string_view event, std::string_view json);

// "bytes:\xe4\xbd" for bytes that are no text of their own, else the text: how OpenAI shows such tokens.
std::string shown_token(std::string_view bytes);

std::string base64(std::span<const float> values);  // of the little-endian float32 values
std::string random_hex(size_t digits);              // for ids; not a secret

}  // namespace dg::api
