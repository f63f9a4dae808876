// DeepSeek's chat formats up to V3.1. Sources: the READMEs and tokenizer_config.json of the checkpoints.
//
// The published templates of V3 and of the first R1 lose the end of a single tool call; the encoders here write the
// complete form (a checkpoint with such a template is served by its template unless the format is chosen by name).
#include "text/prompt_native.h"

namespace dg {
namespace {

constexpr std::string_view kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>", kSentenceEnd = "<｜end▁of▁sentence｜>";
constexpr std::string_view kThink = "<think>", kEndThink = "</think>";
constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>", kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>", kCallEnd = "<｜tool▁call▁end｜>", kCallSep = "<｜tool▁sep｜>";
constexpr std::string_view kOutputsBegin = "<｜tool▁outputs▁begin｜>", kOutputsEnd = "<｜tool▁outputs▁end｜>";
constexpr std::string_view kOutputBegin = "<｜tool▁output▁begin｜>", kOutputEnd = "<｜tool▁output▁end｜>";

template <class... Parts>
void append(std::string& out, const Parts&... parts) {
  (out.append(parts), ...);
}

std::string system_text(const std::vector<ChatMessage>& messages, bool join, bool& any) {
  std::string text;
  any = false;
  for (auto& m : messages) {
    if (m.role != ChatRole::kSystem) continue;
    if (!join) text.clear();
    else if (any) text += "\n\n";
    text += m.content;
    any = true;
  }
  return text;
}

// deepseek-llm, MoE-16B (no bos in the text) and V2: "User: ...\n\nAssistant: ...".
class PlainEncoder : public NativeEncoder {
 public:
  PlainEncoder(const char* name, const ChatModelInfo& info, bool bos) : NativeEncoder(name, info), with_bos_(bos) {}
  bool has_tools() const override { return false; }

 private:
  std::string write(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>&, const ChatOptions& options) const override {
    std::string out = with_bos_ ? bos_ : "";
    for (size_t i = 0; i < messages.size(); i++) {
      auto& m = messages[i];
      if (m.role == ChatRole::kSystem) append(out, m.content, "\n\n");
      else if (m.role == ChatRole::kUser) append(out, "User: ", m.content, "\n\n");
      else append(out, "Assistant: ", m.content, options.continue_final_message && i + 1 == messages.size() ? "" : eos_);
    }
    if (options.add_generation_prompt && !options.continue_final_message) out += "Assistant:";
    return out;
  }
  bool generation_thinks(const ChatOptions&) const override { return false; }

  bool with_bos_;
};

// V3, V3-0324, R1, R1-0528 and the R1 distills.
struct TaggedStyle {
  bool join_systems = true;     // false: the last system message alone
  bool tag_after_user = false;  // the Assistant tag belongs to the user's turn, not to the assistant's
  bool thinks = false;          // the generation prompt opens <think>
  enum class Strip : uint8_t { kNever, kAfterUser, kAlways } strip = Strip::kNever;  // reasoning in the history
  std::string_view between_outputs = "\n";
};

class TaggedEncoder : public NativeEncoder {
 public:
  TaggedEncoder(const char* name, const ChatModelInfo& info, TaggedStyle style) : NativeEncoder(name, info), style_(style) {}

 private:
  std::string write(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>&, const ChatOptions& options) const override {
    bool any_system = false;
    std::string out = bos_ + system_text(messages, style_.join_systems, any_system);
    bool after_output = false, after_user = false;
    for (size_t i = 0; i < messages.size(); i++) {
      auto& m = messages[i];
      switch (m.role) {
        case ChatRole::kSystem: break;
        case ChatRole::kUser:
          append(out, kUser, m.content, style_.tag_after_user ? kAssistant : "");
          after_output = false;
          after_user = true;
          break;
        case ChatRole::kAssistant: {
          if (after_output) out += kOutputsEnd;
          else if (!style_.tag_after_user) out += kAssistant;
          bool strip = style_.strip == TaggedStyle::Strip::kAlways ||
                       (style_.strip == TaggedStyle::Strip::kAfterUser && !after_output && m.calls.empty());
          out += strip ? after_reasoning(m.content, true) : std::string_view(m.content);
          write_calls(m.calls, out);
          if (!options.continue_final_message || i + 1 < messages.size()) out += kSentenceEnd;
          after_output = after_user = false;
          break;
        }
        case ChatRole::kTool:
          append(out, after_output ? style_.between_outputs : kOutputsBegin, kOutputBegin, m.content, kOutputEnd);
          after_output = true;
          after_user = false;
          break;
      }
    }
    if (after_output) out += kOutputsEnd;  // the model continues directly after the results
    if (options.add_generation_prompt && !options.continue_final_message && !after_output) {
      if (!style_.tag_after_user || !after_user) out += kAssistant;
      if (style_.thinks) append(out, kThink, "\n");
    }
    return out;
  }

  static void write_calls(const std::vector<ChatToolCall>& calls, std::string& out) {
    if (calls.empty()) return;
    out += kCallsBegin;
    for (size_t i = 0; i < calls.size(); i++)
      append(out, i > 0 ? "\n" : "", kCallBegin, calls[i].type, kCallSep, calls[i].name, "\n```json\n", calls[i].arguments, "\n```",
             kCallEnd);
    out += kCallsEnd;
  }

  bool generation_thinks(const ChatOptions&) const override { return style_.thinks; }

  TaggedStyle style_;
};

// V3.1 and mini-r1: thinking is chosen per request; past turns carry </think> without their reasoning.
struct HybridStyle {
  bool thinks_by_default = false;
  bool tag_every_turn = false;  // an Assistant tag before each assistant message but those after results; false: after a user only
  std::string_view additional_calls = "{{additional_tool_calls}}";  // literal text of the tools section
};

class HybridEncoder : public NativeEncoder {
 public:
  HybridEncoder(const char* name, const ChatModelInfo& info, HybridStyle style) : NativeEncoder(name, info), style_(style) {}
  bool describes_tools() const override { return true; }

 private:
  std::string write(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>& tools,
                    const ChatOptions& options) const override {
    bool any_system = false, thinking = generation_thinks(options);
    std::string out = bos_ + system_text(messages, true, any_system);
    if (!tools.empty()) write_tools(tools, any_system || !style_.tag_every_turn, out);
    bool after_output = false, after_user = false;
    for (size_t i = 0; i < messages.size(); i++) {
      auto& m = messages[i];
      if (m.role == ChatRole::kUser) {
        append(out, kUser, m.content);
        after_output = false;
        after_user = true;
      } else if (m.role == ChatRole::kAssistant) {
        if (style_.tag_every_turn ? !after_output : after_user) {
          bool open = !style_.tag_every_turn && m.calls.empty() && m.prefix && thinking;
          append(out, kAssistant, open ? kThink : kEndThink);
        }
        bool strip = style_.tag_every_turn || (m.calls.empty() && !after_output);
        out += strip ? after_reasoning(m.content, false) : std::string_view(m.content);
        if (!m.calls.empty()) {
          out += kCallsBegin;
          for (auto& call : m.calls) append(out, kCallBegin, call.name, kCallSep, call.arguments, kCallEnd);
          out += kCallsEnd;
        }
        if (!options.continue_final_message || i + 1 < messages.size()) out += kSentenceEnd;
        after_output = after_user = false;
      } else if (m.role == ChatRole::kTool) {
        append(out, kOutputBegin, m.content, kOutputEnd);
        after_output = true;
        after_user = false;
      }
    }
    bool open = style_.tag_every_turn ? !after_output : after_user;  // after results the model continues directly
    if (options.add_generation_prompt && !options.continue_final_message && open) append(out, kAssistant, thinking ? kThink : kEndThink);
    return out;
  }

  void write_tools(const std::vector<ChatTool>& tools, bool separate, std::string& out) const {
    append(out, separate ? "\n\n" : "", "## Tools\nYou have access to the following tools:\n");
    for (auto& tool : tools)
      append(out, "\n### ", tool.name, "\nDescription: ", tool.description, "\n\nParameters: ", tool.parameters, "\n");
    append(out, "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n", kCallsBegin, kCallBegin, "tool_call_name", kCallSep,
           "tool_call_arguments", kCallEnd, style_.additional_calls, kCallsEnd,
           "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
           "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
           "- For multiple tool calls, chain them directly without separators or spaces\n");
  }

  bool generation_thinks(const ChatOptions& options) const override { return options.thinking.value_or(style_.thinks_by_default); }

  HybridStyle style_;
};

using Strip = TaggedStyle::Strip;
using Made = std::unique_ptr<NativeEncoder>;

template <Strip strip, bool join, bool newline>
Made make_r1(const ChatModelInfo& info) {
  return std::make_unique<TaggedEncoder>(
      "deepseek_r1", info, TaggedStyle{.join_systems = join, .thinks = true, .strip = strip, .between_outputs = newline ? "\n" : ""});
}

}  // namespace

const std::vector<NativeFormat>& native_formats() {
  static const std::vector<NativeFormat> formats = {
      {"deepseek_llm", [](const ChatModelInfo& i) -> Made { return std::make_unique<PlainEncoder>("deepseek_llm", i, false); }},
      {"deepseek_v2", [](const ChatModelInfo& i) -> Made { return std::make_unique<PlainEncoder>("deepseek_v2", i, true); }},
      {"deepseek_v3", [](const ChatModelInfo& i) -> Made { return std::make_unique<TaggedEncoder>("deepseek_v3", i, TaggedStyle{}); }},
      {"deepseek_v3_0324",
       [](const ChatModelInfo& i) -> Made {
         return std::make_unique<TaggedEncoder>("deepseek_v3_0324", i, TaggedStyle{.tag_after_user = true});
       }},
      {"deepseek_r1", make_r1<Strip::kAlways, true, true>},  // also the distills: bos comes from their tokenizer
      {"deepseek_r1", make_r1<Strip::kAlways, false, true>},
      {"deepseek_r1", make_r1<Strip::kAfterUser, true, true>},
      {"deepseek_r1", make_r1<Strip::kAfterUser, false, true>},
      {"deepseek_r1", make_r1<Strip::kAfterUser, true, false>},
      {"deepseek_r1_0528",
       [](const ChatModelInfo& i) -> Made {
         return std::make_unique<TaggedEncoder>("deepseek_r1_0528", i, TaggedStyle{.tag_after_user = true, .strip = Strip::kAlways});
       }},
      {"deepseek_v31", [](const ChatModelInfo& i) -> Made { return std::make_unique<HybridEncoder>("deepseek_v31", i, HybridStyle{}); }},
      {"mini_r1",
       [](const ChatModelInfo& i) -> Made {
         return std::make_unique<HybridEncoder>(
             "mini_r1", i, HybridStyle{.thinks_by_default = true, .tag_every_turn = true, .additional_calls = "{additional_tool_calls}"});
       }},
      {"qwen3", make_qwen3_encoder},
  };
  return formats;
}

}  // namespace dg
