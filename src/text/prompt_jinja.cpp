// The template of the model as an encoder.
//
// Published templates expect different shapes of the same message: `arguments` as text or as an object, `content` of a
// message with calls as null or as "". Which one a template needs is found once, by rendering a small conversation.
#include <fmt/core.h>

#include <array>

#include "base/json.h"
#include "text/jinja_template.h"
#include "text/prompt_native.h"

namespace dg {
namespace {

constexpr const char* kContinueMark =
    "\x02"
    "continue-here"
    "\x03";

class JinjaEncoder : public PromptEncoder {
 public:
  JinjaEncoder(JinjaTemplate parsed, const ChatModelInfo& info) : template_(std::move(parsed)), bos_(info.bos_token), eos_(info.eos_token) {
    find_shapes();
    for (size_t i = 0; i < opens_thinking_.size(); i++) {
      ChatOptions options;
      if (i > 0) options.thinking = i == 2;
      auto prompt = render(Json::array({{{"role", "user"}, {"content", "x"}}}), nullptr, options);
      opens_thinking_[i] = prompt.ok() && prompt_ends_in_reasoning(*prompt);
    }
  }

  const char* name() const override { return "jinja"; }

  bool starts_in_reasoning(const ChatOptions& options) const override {
    if (!options.add_generation_prompt || options.continue_final_message) return false;
    return opens_thinking_[options.thinking ? (*options.thinking ? 2 : 1) : 0];
  }

  Result<std::string> render(const Json& messages, const Json& tools, const ChatOptions& options) const override {
    DG_ASSIGN(auto read, read_chat_messages(messages, options));
    DG_ASSIGN(auto read_tools, read_chat_tools(tools));
    Json variables = Json::object();
    variables["messages"] = shape(messages, read, options.continue_final_message);
    variables["tools"] = read_tools.empty() ? Json(nullptr) : tools;
    variables["add_generation_prompt"] = options.add_generation_prompt && !options.continue_final_message;
    if (!bos_.empty()) variables["bos_token"] = bos_;  // an absent token is undefined, as in transformers
    if (!eos_.empty()) variables["eos_token"] = variables["pad_token"] = eos_;
    if (options.thinking) variables["thinking"] = variables["enable_thinking"] = *options.thinking;
    DG_ASSIGN(std::string text, template_.render(variables));
    if (!options.continue_final_message) return text;
    size_t mark = text.rfind(kContinueMark);
    if (mark == std::string::npos)
      return input_error("chat template: it does not render the last message, so continue_final_message cannot work; leave the option out");
    text.resize(mark);
    return text;
  }

 private:
  // The messages as a template reads them: text content, `reasoning_content`, no empty tool_calls.
  Json shape(const Json& messages, const std::vector<ChatMessage>& read, bool mark_last) const {
    Json out = messages;
    for (size_t i = 0; i < read.size(); i++) {
      Json& m = out[i];
      if (read[i].role == ChatRole::kSystem) m["role"] = "system";
      if (read[i].has_content || !null_content_) m["content"] = read[i].content;
      else m["content"] = nullptr;
      if (mark_last && i + 1 == read.size()) m["content"] = read[i].content + kContinueMark;
      if (read[i].role != ChatRole::kAssistant) continue;
      m.erase("reasoning");
      if (read[i].reasoning) m["reasoning_content"] = *read[i].reasoning;
      else m.erase("reasoning_content");
      if (read[i].calls.empty()) {
        m.erase("tool_calls");
        continue;
      }
      for (size_t c = 0; c < read[i].calls.size(); c++) {
        Json& call = m["tool_calls"][c];
        call["type"] = read[i].calls[c].type;
        Json& arguments = call["function"]["arguments"];
        arguments = read[i].calls[c].arguments;
        if (text_arguments_) continue;
        auto parsed = parse_json(read[i].calls[c].arguments, "arguments");
        if (parsed.ok() && parsed->is_object()) arguments = std::move(*parsed);  // else: text that is no JSON stays as it is
      }
    }
    return out;
  }

  void find_shapes() {
    auto conversation = [](bool text_arguments) {
      Json arguments = text_arguments ? Json("{\"probe_key\": \"v\"}") : Json{{"probe_key", "v"}};
      Json call = {{"id", "call_1"}, {"type", "function"}, {"function", {{"name", "probe_name"}, {"arguments", arguments}}}};
      return Json::array({{{"role", "user"}, {"content", "q"}},
                          {{"role", "assistant"}, {"content", "words"}, {"tool_calls", Json::array({call})}},
                          {{"role", "tool"}, {"tool_call_id", "call_1"}, {"content", "r"}}});
    };
    auto tries = [&](Json messages) {
      ChatOptions options;
      auto text = render(messages, nullptr, options);
      return text.ok() ? *text : std::string();
    };
    // null content first: the other question is asked with the answer
    Json without = conversation(true);
    without[1]["content"] = nullptr;
    null_content_ = text_arguments_ = true;
    std::string text = tries(without);
    text_arguments_ = false;
    std::string object = tries(without);
    null_content_ = !text.empty() || !object.empty();
    for (Json messages : {without, conversation(true)}) {
      text_arguments_ = true;
      text = tries(messages);
      text_arguments_ = false;
      object = tries(messages);
      bool text_plain = text.find("\"probe_key\"") != std::string::npos, object_plain = object.find("\"probe_key\"") != std::string::npos;
      text_arguments_ = text_plain || !object_plain;
      if (text_plain || object_plain) return;
    }
  }

  JinjaTemplate template_;
  std::string bos_, eos_;
  bool text_arguments_ = true;            // `arguments` stays JSON text; false: the template writes it with tojson
  bool null_content_ = true;              // absent content is none; false: ""
  std::array<bool, 3> opens_thinking_{};  // thinking unset, false, true
};

}  // namespace

Result<std::unique_ptr<PromptEncoder>> make_jinja_encoder(const ChatModelInfo& info) {
  DG_ASSIGN(auto parsed, JinjaTemplate::parse(info.chat_template));
  return std::unique_ptr<PromptEncoder>(std::make_unique<JinjaEncoder>(std::move(parsed), info));
}

}  // namespace dg
