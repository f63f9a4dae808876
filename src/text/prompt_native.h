// The native encoders. Each is a small piece of code with its parameters, listed once in native_formats().
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/prompt_messages.h"

namespace dg {

class NativeEncoder : public PromptEncoder {
 public:
  NativeEncoder(const char* name, const ChatModelInfo& info);
  const char* name() const override { return name_; }
  Result<std::string> render(const Json& messages, const Json& tools, const ChatOptions& options) const override;
  bool starts_in_reasoning(const ChatOptions& options) const override;

  virtual bool has_tools() const { return true; }         // false: calls, results and tools are refused
  virtual bool describes_tools() const { return false; }  // writes the descriptions of `tools` into the prompt

 protected:
  virtual std::string write(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>& tools,
                            const ChatOptions& options) const = 0;
  virtual bool generation_thinks(const ChatOptions& options) const = 0;  // the generation prompt opens <think>

  std::string bos_, eos_;

 private:
  const char* name_;
};

// A format and one of its published variants; several may share a name, the first is the one a user gets by name.
struct NativeFormat {
  const char* name;
  std::unique_ptr<NativeEncoder> (*make)(const ChatModelInfo& info);
};

const std::vector<NativeFormat>& native_formats();

// True when `native` renders what `reference` (the model's template) renders, for all probe conversations.
bool renders_equal(const NativeEncoder& native, const PromptEncoder& reference);

// Jinja with the template of the model.
Result<std::unique_ptr<PromptEncoder>> make_jinja_encoder(const ChatModelInfo& info);

std::unique_ptr<NativeEncoder> make_qwen3_encoder(const ChatModelInfo& info);

// "a</think>b</think>c" -> "c" (last) or "b</think>c" (first); the text itself when there is no </think>.
std::string_view after_reasoning(std::string_view content, bool last);

}  // namespace dg
