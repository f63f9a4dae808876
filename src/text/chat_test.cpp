// Golden strings of every native encoder, and what a wrong request is told.
#include "text/chat.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace dg {
namespace {

constexpr const char* kB = "<｜begin▁of▁sentence｜>";

std::unique_ptr<PromptEncoder> encoder(std::string_view name, ChatModelInfo info = {}) {
  auto made = make_prompt_encoder(info, name);
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  return made.ok() ? std::move(*made) : nullptr;
}

std::string prompt(std::string_view name, const char* messages, const char* tools = "null", ChatOptions options = {}) {
  auto text = encoder(name)->render(Json::parse(messages), Json::parse(tools), options);
  EXPECT_TRUE(text.ok()) << (text.ok() ? "" : text.error().message);
  return text.ok() ? *text : "";
}

std::string error_of(std::string_view name, const char* messages, const char* tools = "null", ChatOptions options = {}) {
  auto text = encoder(name)->render(Json::parse(messages), Json::parse(tools), options);
  EXPECT_FALSE(text.ok()) << *text;
  if (text.ok()) return "";
  EXPECT_EQ(text.error().message.find('\n'), std::string::npos);
  return text.error().message;
}

constexpr const char* kTwoTurns = R"([{"role": "system", "content": "S"}, {"role": "user", "content": "u1"},
  {"role": "assistant", "content": "<think>\nr\n</think>\n\na1"}, {"role": "user", "content": "u2"}])";
constexpr const char* kPlainTurns = R"([{"role": "system", "content": "S"}, {"role": "user", "content": "u1"},
  {"role": "assistant", "content": "a1"}, {"role": "user", "content": "u2"}])";
constexpr const char* kTwoSystems = R"([{"role": "system", "content": "S1"}, {"role": "system", "content": "S2"}, {"role": "user",
    "content": "u"}])";
constexpr const char* kCalls = R"([{"role": "user", "content": "u"}, {"role": "assistant", "content": null, "tool_calls": [
  {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
  {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"b": [1, 2.0], "c": "é"}}}]},
  {"role": "tool", "tool_call_id": "1", "content": "r1"}, {"role": "tool", "tool_call_id": "2", "content": "r2"})";
constexpr const char* kTools = R"([{"type": "function", "function": {"name": "f", "description": "Does f",
    "parameters": {"type": "object", "properties": {}}}}])";

TEST(Chat, DeepseekLlm) {
  EXPECT_EQ(prompt("deepseek_llm", kPlainTurns), "S\n\nUser: u1\n\nAssistant: a1<｜end▁of▁sentence｜>User: u2\n\nAssistant:");
}

TEST(Chat, DeepseekV2) {
  EXPECT_EQ(prompt("deepseek_v2", kPlainTurns),
            std::string(kB) + "S\n\nUser: u1\n\nAssistant: a1<｜end▁of▁sentence｜>User: u2\n\nAssistant:");
}

TEST(Chat, DeepseekV3) {
  EXPECT_EQ(prompt("deepseek_v3", kPlainTurns),
            std::string(kB) + "S<｜User｜>u1<｜Assistant｜>a1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜>");
  EXPECT_EQ(prompt("deepseek_v3", kTwoSystems), std::string(kB) + "S1\n\nS2<｜User｜>u<｜Assistant｜>");
  EXPECT_EQ(prompt("deepseek_v3", (std::string(kCalls) + R"(, {"role": "assistant", "content": "done"}])").c_str()),
            std::string(kB) +
                "<｜User｜>u<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": "
                "1}\n```<｜tool▁call▁end｜>\n"
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{\"b\": [1, 2.0], \"c\": "
                "\"é\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
                "<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>r1<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>r2"
                "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>done<｜end▁of▁sentence｜><｜Assistant｜>");
  EXPECT_TRUE(prompt("deepseek_v3", (std::string(kCalls) + "]").c_str()).ends_with("r2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"));
}

TEST(Chat, DeepseekV3March) {
  EXPECT_EQ(prompt("deepseek_v3_0324", kPlainTurns),
            std::string(kB) + "S<｜User｜>u1<｜Assistant｜>a1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜>");
  // here the tag belongs to the user's turn, so it is there without a generation prompt too
  EXPECT_EQ(prompt("deepseek_v3_0324", R"([{"role": "user", "content": "u"}])", "null", {.add_generation_prompt = false}),
            std::string(kB) + "<｜User｜>u<｜Assistant｜>");
}

TEST(Chat, DeepseekR1) {
  EXPECT_EQ(prompt("deepseek_r1", kTwoTurns),
            std::string(kB) + "S<｜User｜>u1<｜Assistant｜>\n\na1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜><think>\n");
  EXPECT_TRUE(encoder("deepseek_r1")->starts_in_reasoning({}));
  EXPECT_FALSE(encoder("deepseek_r1")->starts_in_reasoning({.add_generation_prompt = false}));
  EXPECT_FALSE(encoder("deepseek_v3")->starts_in_reasoning({}));
}

TEST(Chat, DeepseekR1Distill) {
  auto distill = encoder("deepseek_r1", {.model_type = "llama", .bos_token = "<|begin_of_text|>"});
  auto text = distill->render(Json::parse(R"([{"role": "user", "content": "u"}])"), nullptr, {});
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "<|begin_of_text|><｜User｜>u<｜Assistant｜><think>\n");
}

TEST(Chat, DeepseekR1May) {
  EXPECT_EQ(prompt("deepseek_r1_0528", kTwoTurns),
            std::string(kB) + "S<｜User｜>u1<｜Assistant｜>\n\na1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜>");
  EXPECT_EQ(prompt("deepseek_r1_0528", kTwoSystems), std::string(kB) + "S1\n\nS2<｜User｜>u<｜Assistant｜>");
  EXPECT_FALSE(encoder("deepseek_r1_0528")->starts_in_reasoning({}));  // the model writes <think> itself
}

TEST(Chat, DeepseekV31) {
  std::string history = std::string(kB) + "S<｜User｜>u1<｜Assistant｜></think>\n\na1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜>";
  EXPECT_EQ(prompt("deepseek_v31", kTwoTurns), history + "</think>");
  EXPECT_EQ(prompt("deepseek_v31", kTwoTurns, "null", {.thinking = true}), history + "<think>");
  EXPECT_TRUE(encoder("deepseek_v31")->starts_in_reasoning({.thinking = true}));
  EXPECT_FALSE(encoder("deepseek_v31")->starts_in_reasoning({}));
  EXPECT_EQ(
      prompt("deepseek_v31", (std::string(kCalls) + "]").c_str()),
      std::string(kB) +
          "<｜User｜>u<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>"
          "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{\"b\": [1, 2.0], \"c\": \"é\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
          "<｜tool▁output▁begin｜>r1<｜tool▁output▁end｜><｜tool▁output▁begin｜>r2<｜tool▁output▁end｜>");
  EXPECT_EQ(prompt("deepseek_v31", R"([{"role": "system", "content": "S"}, {"role": "user", "content": "u"}])", kTools),
            std::string(kB) +
                "S\n\n## Tools\nYou have access to the following tools:\n\n### f\nDescription: Does f\n\n"
                "Parameters: {\"type\": \"object\", \"properties\": {}}\n\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
                "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the "
                "available tools\n"
                "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
                "- For multiple tool calls, chain them directly without separators or spaces\n<｜User｜>u<｜Assistant｜></think>");
}

TEST(Chat, MiniR1) {
  EXPECT_EQ(prompt("mini_r1", kTwoTurns),
            std::string(kB) + "S<｜User｜>u1<｜Assistant｜></think>\n\na1<｜end▁of▁sentence｜><｜User｜>u2<｜Assistant｜><think>");
  EXPECT_TRUE(encoder("mini_r1")->starts_in_reasoning({}));
  EXPECT_FALSE(encoder("mini_r1")->starts_in_reasoning({.thinking = false}));
  EXPECT_TRUE(prompt("mini_r1", R"([{"role": "user", "content": "u"}])", kTools, {.thinking = false})
                  .starts_with(std::string(kB) + "## Tools\nYou have access"));
}

TEST(Chat, Qwen3) {
  EXPECT_EQ(prompt("qwen3", kTwoTurns),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_TRUE(prompt("qwen3", kTwoTurns, "null", {.thinking = false}).ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_EQ(prompt("qwen3", (std::string(kCalls) + "]").c_str(), kTools),
            "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
            "function "
            "signatures within <tools></tools> XML tags:\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", "
            "\"description\": "
            "\"Does f\", \"parameters\": {\"type\": \"object\", \"properties\": {}}}}\n</tools>\n\nFor each function call, return a json "
            "object "
            "with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
            "\"arguments\": "
            "<args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": "
            "\"f\", "
            "\"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"b\": [1, 2.0], \"c\": "
            "\"é\"}}\n</tool_call>"
            "<|im_end|>\n<|im_start|>user\n<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n");
  // reasoning of the current turn stays, that of earlier turns goes
  EXPECT_EQ(prompt("qwen3", R"([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning": "r\n"}])", "null",
                   {.add_generation_prompt = false}),
            "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<think>\nr\n</think>\n\na<|im_end|>\n");
}

TEST(Chat, ContentPartsAreConcatenated) {
  const char* messages = R"([{"role": "developer", "content": "D"}, {"role": "user", "content": [{"type": "text", "text": "a"},
      {"type": "text", "text": "b"}]}])";
  EXPECT_EQ(prompt("deepseek_v3", messages), std::string(kB) + "D<｜User｜>ab<｜Assistant｜>");
  auto jinja = encoder("jinja", {.chat_template = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"});
  auto text = jinja->render(Json::parse(messages), nullptr, {});
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "[system:D][user:ab]");
}

TEST(Chat, ContinuesTheFinalMessage) {
  const char* messages = R"([{"role": "user", "content": "u"}, {"role": "assistant", "content": "It is "}])";
  ChatOptions options{.continue_final_message = true};
  EXPECT_EQ(prompt("deepseek_llm", messages, "null", options), "User: u\n\nAssistant: It is ");
  EXPECT_EQ(prompt("deepseek_v3", messages, "null", options), std::string(kB) + "<｜User｜>u<｜Assistant｜>It is ");
  EXPECT_EQ(prompt("deepseek_v31", messages, "null", options), std::string(kB) + "<｜User｜>u<｜Assistant｜></think>It is ");
  EXPECT_EQ(prompt("qwen3", messages, "null", options),
            "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nIt "
            "is ");
  auto jinja = encoder("jinja", {.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}{{ 'G' if "
                                                  "add_generation_prompt }}"});
  auto text = jinja->render(Json::parse(messages), nullptr, options);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "<user>u</><assistant>It is ");
  EXPECT_FALSE(encoder("deepseek_r1")->starts_in_reasoning(options));
  EXPECT_EQ(error_of("deepseek_v3", R"([{"role": "user", "content": "u"}])", "null", options),
            "messages[0].role: continue_final_message needs an assistant message at the end; add one or leave the option out");
  auto silent = encoder("jinja", {.chat_template = "nothing"})->render(Json::parse(messages), nullptr, options);
  ASSERT_FALSE(silent.ok());
  EXPECT_NE(silent.error().message.find("continue_final_message"), std::string::npos);
}

TEST(Chat, ErrorsNameTheField) {
  for (const char* name : {"deepseek_v3", "qwen3"}) {
    EXPECT_EQ(error_of(name, "{}"), "messages: expected a list of messages, found an object");
    EXPECT_EQ(error_of(name, "[]"), "messages: expected at least one message, found an empty list");
    EXPECT_EQ(error_of(name, R"(["hi"])"), "messages[0]: expected an object with role and content, found a string");
    EXPECT_EQ(error_of(name, R"([{"content": "x"}])"), "messages[0].role: expected a string, found nothing");
    EXPECT_EQ(error_of(name, R"([{"role": "us\ner", "content": "x"}])"),
              "messages[0].role: expected system, developer, user, assistant or tool, found \"us\\ner\"");
    EXPECT_EQ(error_of(name, R"([{"role": "user", "content": 5}])"),
              "messages[0].content: expected a string or a list of text parts, found a number");
    EXPECT_EQ(error_of(name, R"([{"role": "user"}])"), "messages[0].content: expected a string or a list of text parts, found nothing");
    EXPECT_EQ(error_of(name, R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
              "messages[0].content[0].type: expected \"text\" (this server reads text only), found \"image_url\"");
    EXPECT_EQ(error_of(name, R"([{"role": "user", "content": "x"}, {"role": "tool", "content": "r"}])"),
              "messages[1].role: a tool message must follow an assistant message with tool_calls");
    EXPECT_EQ(error_of(name, R"([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}, {"role": "tool",
        "tool_call_id": "b", "content": "r"}])"),
              "messages[1].tool_call_id: expected the id of a call in messages[0].tool_calls, found \"b\"");
    EXPECT_EQ(error_of(name, R"([{"role": "assistant", "content": null}])"),
              "messages[0].content: expected a string (only a message with tool_calls may have none), found nothing");
    EXPECT_EQ(error_of(name, R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}])"),
              "messages[0].tool_calls[0].function.arguments: expected a string with JSON or an object, found a number");
    EXPECT_EQ(error_of(name, R"([{"role": "user", "content": "x"}])", R"([{"type": "function"}])"),
              "tools[0].function: expected an object with a name, found nothing");
    EXPECT_EQ(error_of(name, R"([{"role": "user", "content": "x"}])", "3"), "tools: expected a list of tools or null, found a number");
  }
  EXPECT_EQ(error_of("deepseek_v2", R"([{"role": "user", "content": "x"}])", kTools),
            "tools: the chat format deepseek_v2 has no tools; leave them out or choose another --chat-format");
}

TEST(Chat, ChoosingAnEncoder) {
  auto none = make_prompt_encoder({.model_type = "deepseek_v3"});
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().message,
            "chat template: the model (model_type \"deepseek_v3\") has none in tokenizer_config.json or chat_template.jinja; pass "
            "--chat-format with "
            "one of jinja, deepseek_llm, deepseek_v2, deepseek_v3, deepseek_v3_0324, deepseek_r1, deepseek_r1_0528, deepseek_v31, "
            "mini_r1, qwen3");
  auto unknown = make_prompt_encoder({}, "gpt");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().message.find("--chat-format: expected auto or one of jinja, "), 0u);
  auto broken = make_prompt_encoder({.chat_template = "{% if %}"});
  ASSERT_FALSE(broken.ok());
  EXPECT_EQ(broken.error().message.find("chat template, line 1: syntax error"), 0u);
  auto other = make_prompt_encoder({.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt "
                                                     "%}<think>\n{% endif %}"});
  ASSERT_TRUE(other.ok());
  EXPECT_STREQ((*other)->name(), "jinja");
  EXPECT_TRUE((*other)->starts_in_reasoning({}));
  EXPECT_FALSE((*other)->starts_in_reasoning({.add_generation_prompt = false}));
}

TEST(Chat, EndsInReasoning) {
  EXPECT_TRUE(prompt_ends_in_reasoning("x<think>"));
  EXPECT_TRUE(prompt_ends_in_reasoning("x<think>\n"));
  EXPECT_FALSE(prompt_ends_in_reasoning("x<think>y"));
  EXPECT_FALSE(prompt_ends_in_reasoning("<think>\n\n</think>\n\n"));
  EXPECT_FALSE(prompt_ends_in_reasoning(""));
}

}  // namespace
}  // namespace dg
