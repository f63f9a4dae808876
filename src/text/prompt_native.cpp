#include "text/prompt_native.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg {

NativeEncoder::NativeEncoder(const char* name, const ChatModelInfo& info) : bos_(info.bos_token), eos_(info.eos_token), name_(name) {
  // A model without a template and without named tokens (a bare GGUF): the tokens of the DeepSeek line.
  if (bos_.empty() && info.chat_template.empty()) bos_ = "<｜begin▁of▁sentence｜>";
  if (eos_.empty()) eos_ = "<｜end▁of▁sentence｜>";
}

Result<std::string> NativeEncoder::render(const Json& messages, const Json& tools, const ChatOptions& options) const {
  DG_ASSIGN(auto read, read_chat_messages(messages, options));
  DG_ASSIGN(auto read_tools, read_chat_tools(tools));
  if (!has_tools()) {
    const char* advice = "has no tools; leave them out or choose another --chat-format";
    if (!read_tools.empty()) return input_error(fmt::format("tools: the chat format {} {}", name_, advice));
    for (size_t i = 0; i < read.size(); i++)
      if (read[i].role == ChatRole::kTool || !read[i].calls.empty())
        return input_error(
            fmt::format("messages[{}].{}: the chat format {} {}", i, read[i].calls.empty() ? "role" : "tool_calls", name_, advice));
  }
  return write(read, read_tools, options);
}

bool NativeEncoder::starts_in_reasoning(const ChatOptions& options) const {
  return options.add_generation_prompt && !options.continue_final_message && generation_thinks(options);
}

std::string_view after_reasoning(std::string_view content, bool last) {
  constexpr std::string_view kEnd = "</think>";
  size_t at = last ? content.rfind(kEnd) : content.find(kEnd);
  return at == std::string_view::npos ? content : content.substr(at + kEnd.size());
}

}  // namespace dg
