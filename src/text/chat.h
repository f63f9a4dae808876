// Chat messages to the exact prompt text a model was trained on.
//
// Known formats are native encoders; any other published template runs through the Jinja interpreter. The choice is made
// once, at load, and is semantic: a native encoder replaces a template only when both render the same text for a set of
// probe conversations, so a model with a slightly different template keeps its own.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"

namespace dg {

struct ChatOptions {
  bool add_generation_prompt = true;
  std::optional<bool> thinking = std::nullopt;  // unset: the model's default
  bool continue_final_message = false;          // the last message, an assistant's, is left open for the model to continue
};

// Immutable: any number of threads may render at the same time.
class PromptEncoder {
 public:
  virtual ~PromptEncoder() = default;
  virtual const char* name() const = 0;  // "deepseek_r1", "jinja", ...

  // messages: JSON array of {role, content (string or list of {type: text, text}), reasoning_content?, tool_calls?,
  // tool_call_id?}; tools: array or null. An error names messages[i].field.
  virtual Result<std::string> render(const Json& messages, const Json& tools, const ChatOptions& options) const = 0;

  // The generated text starts inside <think> after a user message. After tool results some formats differ:
  // prompt_ends_in_reasoning() answers for a rendered prompt.
  virtual bool starts_in_reasoning(const ChatOptions& options) const = 0;
};

struct ChatModelInfo {
  std::string model_type = {};     // of config.json
  std::string chat_template = {};  // "" when the model has none
  std::string bos_token = {}, eos_token = {};
};

// choice: "auto", "jinja" or the name of a native encoder. auto takes the native encoder whose rendering equals that of
// the template, else Jinja with the template; without a template it is an error that says what to pass.
Result<std::unique_ptr<PromptEncoder>> make_prompt_encoder(const ChatModelInfo& info, std::string_view choice = "auto");

// The names --chat-format accepts besides "auto".
std::vector<std::string> prompt_encoder_names();

// True when `prompt` ends with an opened <think> (white space after it is allowed).
bool prompt_ends_in_reasoning(std::string_view prompt);

}  // namespace dg
