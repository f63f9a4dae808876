// Qwen3: ChatML, reasoning of the current turn kept in the history, tools in the Hermes style.
#include <fmt/core.h>

#include "text/prompt_native.h"

namespace dg {
namespace {

std::string_view trim_newlines(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) text.remove_prefix(1);
  while (right && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

bool is_tool_response(std::string_view content) { return content.starts_with("<tool_response>") && content.ends_with("</tool_response>"); }

class Qwen3Encoder : public NativeEncoder {
 public:
  explicit Qwen3Encoder(const ChatModelInfo& info) : NativeEncoder("qwen3", info) {}
  bool describes_tools() const override { return true; }

 private:
  std::string write(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>& tools,
                    const ChatOptions& options) const override {
    std::string out;
    write_system(messages, tools, out);
    size_t last_query = messages.size() - 1;  // the turn whose reasoning is still shown starts here
    for (size_t i = messages.size(); i-- > 0;)
      if (messages[i].role == ChatRole::kUser && !is_tool_response(messages[i].content)) {
        last_query = i;
        break;
      }
    for (size_t i = 0; i < messages.size(); i++) {
      auto& m = messages[i];
      bool last = i + 1 == messages.size();
      switch (m.role) {
        case ChatRole::kSystem:
          if (i > 0) out += fmt::format("<|im_start|>system\n{}<|im_end|>\n", m.content);
          break;
        case ChatRole::kUser: out += fmt::format("<|im_start|>user\n{}<|im_end|>\n", m.content); break;
        case ChatRole::kAssistant:
          write_assistant(m, i > last_query, last, out);
          if (!last || !options.continue_final_message) out += "<|im_end|>\n";
          break;
        case ChatRole::kTool:
          if (i == 0 || messages[i - 1].role != ChatRole::kTool) out += "<|im_start|>user";
          out += fmt::format("\n<tool_response>\n{}\n</tool_response>", m.content);
          if (last || messages[i + 1].role != ChatRole::kTool) out += "<|im_end|>\n";
          break;
      }
    }
    if (options.add_generation_prompt && !options.continue_final_message) {
      out += "<|im_start|>assistant\n";
      if (options.thinking == false) out += "<think>\n\n</think>\n\n";
    }
    return out;
  }

  static void write_system(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>& tools, std::string& out) {
    bool system = messages[0].role == ChatRole::kSystem;
    if (!system && tools.empty()) return;
    out += "<|im_start|>system\n";
    if (system) out += messages[0].content;
    if (!tools.empty()) {
      if (system) out += "\n\n";
      out +=
          "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
          "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
      for (auto& tool : tools) out += "\n" + tool.whole;
      out +=
          "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
          "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";
    }
    out += "<|im_end|>\n";
  }

  static void write_assistant(const ChatMessage& m, bool current_turn, bool last, std::string& out) {
    std::string_view content = m.content, reasoning;
    if (m.reasoning) {
      reasoning = *m.reasoning;
    } else if (content.find("</think>") != std::string_view::npos) {
      reasoning = trim_newlines(content.substr(0, content.find("</think>")), false, true);
      if (size_t open = reasoning.rfind("<think>"); open != std::string_view::npos) reasoning.remove_prefix(open + 7);
      reasoning = trim_newlines(reasoning, true, false);
      content = trim_newlines(after_reasoning(content, true), true, false);
    }
    out += "<|im_start|>assistant\n";
    if (current_turn && (last || !reasoning.empty()))
      out += fmt::format("<think>\n{}\n</think>\n\n{}", trim_newlines(reasoning, true, true), trim_newlines(content, true, false));
    else out += content;
    for (size_t i = 0; i < m.calls.size(); i++) {
      if (i > 0 || !content.empty()) out += '\n';
      out += fmt::format("<tool_call>\n{{\"name\": \"{}\", \"arguments\": {}}}\n</tool_call>", m.calls[i].name, m.calls[i].arguments);
    }
  }

  bool generation_thinks(const ChatOptions&) const override { return false; }  // the model writes <think> itself
};

}  // namespace

std::unique_ptr<NativeEncoder> make_qwen3_encoder(const ChatModelInfo& info) { return std::make_unique<Qwen3Encoder>(info); }

}  // namespace dg
