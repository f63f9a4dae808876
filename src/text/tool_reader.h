// Readers of one tool call each: they get the characters between the marks that begin and end a call and hand out the
// function's name and its arguments as soon as these are certain.
//
// `name` is set when the first character of the arguments is there, so that text which only looks like a call never becomes
// one. From then on `arguments` gets every further piece; all pieces together are at every moment the beginning of a JSON
// object. Internal to OutputParser.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "text/output_parser.h"

namespace dg {

class ToolReader {
 public:
  virtual ~ToolReader() = default;
  // False: the text is no call of this format, or no longer one.
  virtual bool put(char c) = 0;
  virtual bool put_separator() { return false; }
  // Nothing follows. True: the call is complete. `at_mark`: the end was marked, the text did not just break off.
  virtual bool end(bool at_mark) = 0;
  // Inside a string of JSON a mark is data.
  virtual bool in_string() const = 0;

  std::optional<std::string> name;
  std::string arguments;  // the owner takes what is there and clears it
};

std::unique_ptr<ToolReader> make_tool_reader(ToolFormat format);
std::unique_ptr<ToolReader> make_hermes_reader();

// What a mark means to the parser.
enum class ToolMark { kSectionBegin, kSectionEnd, kCallBegin, kCallEnd, kSeparator };
struct ToolMarkText {
  ToolMark mark;
  std::string_view text;
};
// Empty for kNone. No mark is the beginning of another one.
std::span<const ToolMarkText> tool_marks(ToolFormat format);

constexpr size_t kMaxToolNameBytes = 256;
// Something that can be a function's name: not empty, not too long, no control characters.
bool is_tool_name(std::string_view name);

}  // namespace dg
