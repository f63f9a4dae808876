// Splits the text of an answer, while it streams, into reasoning, content and tool calls.
//
// No markup (<think>, tool tags, special tokens) ever leaves the parser, in whatever pieces the text arrives: what may be the
// beginning of a mark is held back. The result does not depend on where the stream is cut. Text that is not the well-formed
// markup it begins like comes out as content. One parser serves one answer, one thread.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "text/grammar.h"

namespace dg {

enum class ToolFormat {
  kNone,
  kDeepseekV3,   // V3, R1: <tool_calls_begin><tool_call_begin>function<tool_sep>name\n```json\n{...}\n```<tool_call_end>...
  kDeepseekV31,  // V3.1, mini-r1: <tool_call_begin>name<tool_sep>{...}<tool_call_end>
  kHermes,       // Qwen3, Hermes: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>
};

// Names users know: deepseek_v3, deepseekv3, deepseek_v31, deepseekv31, hermes, qwen3, none. "auto": by the prompt encoder's
// name and the chat template's text.
Result<ToolFormat> find_tool_format(std::string_view name, std::string_view encoder_name, std::string_view chat_template);
const char* tool_format_name(ToolFormat format);
// The special tokens that the parser must see in the text (EngineRequest::visible_special), as contents.
std::vector<std::string> tool_format_marks(ToolFormat format);

struct OutputParserOptions {
  bool parse_reasoning = true;       // false: <think> is content like any other text
  bool starts_in_reasoning = false;  // the prompt ended with <think>
  ToolFormat tools = ToolFormat::kNone;
  // Several calls in one answer; false: what follows the first is dropped.
  bool parallel_tool_calls = true;
};

struct OutputEvent {
  enum Kind {
    kReasoning,      // text
    kContent,        // text
    kToolName,       // text = the function's name: begins call number `call`
    kToolArguments,  // text = the next piece of its arguments: all pieces together are one JSON object
    kToolEnd,        // the call is complete and its arguments are valid JSON
  };
  Kind kind;
  std::string text;
  int call = 0;  // 0, 1, ... of the tool call
};

class OutputParser {
 public:
  explicit OutputParser(const OutputParserOptions& options);
  ~OutputParser();
  // What has become certain; neighbouring text of one kind is one event, no event of text is empty.
  std::vector<OutputEvent> push(std::string_view text);
  // The rest, at the end of the answer. A call that breaks off stays as it was streamed, without kToolEnd.
  std::vector<OutputEvent> finish();
  int calls() const;  // complete tool calls so far

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What tool_choice demands of the text, as a grammar (one schema per function, the format's markup around it).
// `tools`: as in a request; `function`: only this one (tool_choice {function: {name}}), "" = any; `required`: a call must
// come (tool_choice "required" or a named function), else the grammar starts when the model begins a call by itself.
// Without `required`, kNone or no tool with "strict": true gives no grammar (nullopt).
struct ToolGrammarOptions {
  std::string function;
  bool required = false;
  bool parallel = true;
  std::string start_after;  // "</think>" when the answer begins in reasoning
};
Result<std::optional<GrammarSpec>> tool_grammar(ToolFormat format, const Json& tools, const ToolGrammarOptions& options);
bool any_strict_tool(const Json& tools);

}  // namespace dg
