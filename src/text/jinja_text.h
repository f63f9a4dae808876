// Text helpers with Python's str semantics on UTF-8: positions count code points, white space is Unicode's. A byte that
// is not valid UTF-8 counts as one character, so hostile bytes never lead out of bounds.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dg::jinja {

size_t sequence_length(std::string_view text, size_t at);     // bytes of the character at `at`, at least 1
uint32_t decode_character(std::string_view text, size_t at);  // U+FFFD for an invalid byte
void append_character(uint32_t code, std::string& out);
size_t count_characters(std::string_view text);
size_t byte_offset(std::string_view text, size_t character);  // text.size() when past the end

bool is_space(uint32_t code);
bool is_ascii(std::string_view text);

// Without `set`: white space; otherwise any of its characters.
std::string_view strip_left(std::string_view text, const std::string* set = nullptr);
std::string_view strip_right(std::string_view text, const std::string* set = nullptr);

std::string upper(std::string_view text);  // ASCII, Latin-1, Greek and Cyrillic letters; others unchanged
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);

// str.split / str.rsplit; max_splits < 0: no limit. An empty separator is the caller's error.
std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t max_splits, bool from_right);
std::vector<std::string_view> split_space(std::string_view text, int64_t max_splits, bool from_right);

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t max_count);
std::string python_repr(std::string_view text);
std::string escape_html(std::string_view text);
std::string url_encode(std::string_view text);

}  // namespace dg::jinja
