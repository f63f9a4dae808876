#include "text/output_parser.h"

#include <gtest/gtest.h>

#include <random>

#include "base/json.h"
#include "text/chat.h"
#include "text/json_prefix.h"

namespace dg {
namespace {

constexpr ToolFormat kV3 = ToolFormat::kDeepseekV3, kV31 = ToolFormat::kDeepseekV31, kHermes = ToolFormat::kHermes;

// Short names of the marks in the texts below: the parser sees the real ones.
std::string real(std::string text) {
  const std::pair<const char*, const char*> names[] = {{"[CS]", "<｜tool▁calls▁begin｜>"},
                                                       {"[CE]", "<｜tool▁calls▁end｜>"},
                                                       {"[B]", "<｜tool▁call▁begin｜>"},
                                                       {"[E]", "<｜tool▁call▁end｜>"},
                                                       {"[S]", "<｜tool▁sep｜>"}};
  for (auto& [name, mark] : names)
    for (size_t at; (at = text.find(name)) != std::string::npos;) text.replace(at, std::string_view(name).size(), mark);
  return text;
}

void join(std::vector<OutputEvent>& all, std::vector<OutputEvent> events) {
  for (OutputEvent& event : events) {
    const bool named = event.kind == OutputEvent::kToolName || event.kind == OutputEvent::kToolEnd;
    EXPECT_EQ(event.text.empty(), event.kind == OutputEvent::kToolEnd);
    if (!all.empty() && !named && all.back().kind == event.kind && all.back().call == event.call) all.back().text += event.text;
    else all.push_back(std::move(event));
  }
}

// "R(thought) C(text) N0(name) A0({}) E0" of a list of events.
std::string shown_events(const std::vector<OutputEvent>& events) {
  std::string out;
  for (const OutputEvent& event : events) {
    if (!out.empty()) out += ' ';
    out += "RCNAE"[event.kind];
    if (event.kind >= OutputEvent::kToolName) out += std::to_string(event.call);
    if (event.kind != OutputEvent::kToolEnd) out += "(" + event.text + ")";
  }
  return out;
}

std::vector<OutputEvent> parse_parts(const OutputParserOptions& options, const std::vector<std::string>& parts) {
  OutputParser parser(options);
  std::vector<OutputEvent> all;
  for (const std::string& part : parts) join(all, parser.push(part));
  join(all, parser.finish());
  int ends = 0;
  for (const OutputEvent& event : all) ends += event.kind == OutputEvent::kToolEnd;
  EXPECT_EQ(parser.calls(), ends);
  EXPECT_TRUE(parser.finish().empty());
  return all;
}

std::string parse(ToolFormat format, const std::string& text, OutputParserOptions options = {}) {
  options.tools = format;
  const std::string whole = shown_events(parse_parts(options, {real(text)}));
  std::vector<std::string> bytes;
  for (char c : real(text)) bytes.emplace_back(1, c);
  EXPECT_EQ(shown_events(parse_parts(options, bytes)), whole) << text;
  return whole;
}

TEST(OutputParser, WithoutToolsItSplitsReasoning) {
  EXPECT_EQ(parse(ToolFormat::kNone, "a\n</think>\n\nb<tool_call> \n", {.starts_in_reasoning = true}), "R(a) C(b<tool_call> \n)");
  EXPECT_EQ(parse(ToolFormat::kNone, "<think>a</think>b"), "R(a) C(b)");
  EXPECT_EQ(parse(ToolFormat::kNone, "<think>a</think>b", {.parse_reasoning = false, .starts_in_reasoning = true}), "C(<think>a</think>b)");
  EXPECT_EQ(parse(ToolFormat::kNone, ""), "");
}

TEST(OutputParser, V31) {
  EXPECT_EQ(parse(kV31, "[CS][B]f[S]{\"a\": 1}[E][CE]"), "N0(f) A0({\"a\": 1}) E0");
  EXPECT_EQ(parse(kV31, "Let me see.\n\n[CS][B]f[S]{}[E][B]g[S]{\"b\": [1, 2.0], \"c\": \"é\"}[E][CE]"),
            "C(Let me see.) N0(f) A0({}) E0 N1(g) A1({\"b\": [1, 2.0], \"c\": \"é\"}) E1");
  EXPECT_EQ(parse(kV31, "think</think>\n\n[CS][B]f[S] {} [E][CE]\n", {.starts_in_reasoning = true}), "R(think) N0(f) A0({}) E0");
  EXPECT_EQ(parse(kV31, "[B]f[S]{}"), "N0(f) A0({}) E0");  // the value is whole: only marks are missing
  EXPECT_EQ(parse(kV31, "[CS][B]a b-c.d[S]{}[E][CE]"), "N0(a b-c.d) A0({}) E0");
}

TEST(OutputParser, V3) {
  EXPECT_EQ(parse(kV3, "[CS][B]function[S]f\n```json\n{\"a\": 1}\n```[E]\n[B]function[S]g\n```json\n{\"b\": \"c\"}\n```[E][CE]"),
            "N0(f) A0({\"a\": 1}) E0 N1(g) A1({\"b\": \"c\"}) E1");
  EXPECT_EQ(parse(kV3, "[CS][B]function[S]f\n```json\n{\"a\": 1}\n```[E]"), "N0(f) A0({\"a\": 1}) E0");  // R1 forgets the end
  EXPECT_EQ(parse(kV3, "[B]function[S]f\n{\"a\": 1}[E]"), "N0(f) A0({\"a\": 1}) E0");
  EXPECT_EQ(parse(kV3, "[B]function[S]f{\"a\": 1}\n[E]"), "N0(f) A0({\"a\": 1}) E0");
  EXPECT_EQ(parse(kV3, "[B]function[S]f\n```\n{}\n```[E]"), "N0(f) A0({}) E0");
  EXPECT_EQ(parse(kV3, "[B]f[S]{\"a\": 1}[E]"), "N0(f) A0({\"a\": 1}) E0");  // the shape of V3.1
  EXPECT_EQ(parse(kV31, "[B]function[S]f\n```json\n{}\n```[E]"), "N0(f) A0({}) E0");
}

TEST(OutputParser, Hermes) {
  EXPECT_EQ(parse(kHermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": []}}}\n</tool_call>"),
            "N0(f) A0({\"a\": {\"b\": []}}) E0");
  EXPECT_EQ(parse(kHermes,
                  "Hi\n<tool_call>{\"arguments\" : { } , \"name\":\"f\"}</tool_call>\n<tool_call>\n{\"id\": [{\"name\": 1}], "
                  "\"name\": \"g\\u00e9\", \"parameters\": {\"name\": \"x\"}, \"n\": 1}\n</tool_call>\n"),
            "C(Hi) N0(f) A0({ }) E0 N1(gé) A1({\"name\": \"x\"}) E1");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1} \"}</tool_call>"), "N0(f) A0({\"a\": 1}) E0");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\"}</tool_call>"), "N0(f) A0({}) E0");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>"), "N0(f) A0({}) E0");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}"), "N0(f) A0({}) E0");
}

TEST(OutputParser, FunctionsWithoutArguments) {
  EXPECT_EQ(parse(kV31, "[B]now[S][E]"), "N0(now) A0({}) E0");
  EXPECT_EQ(parse(kV3, "[B]function[S]now\n[E]"), "N0(now) A0({}) E0");
  EXPECT_EQ(parse(kV3, "[B]function[S][E]"), "C(function)");
  EXPECT_EQ(parse(kV31, "[B]now[S]"), "C(now)");  // broken off: arguments may have been on their way
}

TEST(OutputParser, ArgumentsStreamAsTheyCome) {
  OutputParser parser({.tools = kV31});
  EXPECT_EQ(shown_events(parser.push(real("Text \n[CS]"))), "C(Text)");
  EXPECT_TRUE(parser.push(real("[B]get_")).empty());
  EXPECT_TRUE(parser.push(real("weather[S]")).empty());
  EXPECT_EQ(shown_events(parser.push("{\"ci")), "N0(get_weather) A0({\"ci)");
  EXPECT_EQ(shown_events(parser.push("ty\": \"Pa")), "A0(ty\": \"Pa)");
  EXPECT_EQ(shown_events(parser.push("ris\"} ")), "A0(ris\"})");
  EXPECT_EQ(parser.calls(), 0);
  EXPECT_EQ(shown_events(parser.push(real("[E]"))), "E0");
  EXPECT_EQ(parser.calls(), 1);
}

TEST(OutputParser, HoldsBackOnlyWhatMayBeAMark) {
  OutputParser parser({.tools = kHermes});
  EXPECT_EQ(shown_events(parser.push("1 <")), "C(1)");
  EXPECT_EQ(shown_events(parser.push("too")), "");
  EXPECT_EQ(shown_events(parser.push("t h")), "C( <toot h)");
  EXPECT_EQ(shown_events(parser.push("\n")), "");
  EXPECT_EQ(shown_events(parser.finish()), "C(\n)");
}

TEST(OutputParser, WhatIsNoCallIsContent) {
  EXPECT_EQ(parse(kV31, "a [CS][B]f[S]not JSON[E][CE] b"), "C(a fnot JSON b)");
  EXPECT_EQ(parse(kV31, "a\n[B]f{}[E]"), "C(a\nf{})");  // no separator
  EXPECT_EQ(parse(kV31, "[B][S]{}[E]"), "C({})");       // no name
  EXPECT_EQ(parse(kV31, "[B]f[S][1][E]"), "C(f[1])");   // no object
  EXPECT_EQ(parse(kV31, "[B]" + std::string(300, 'f') + "[S]{}[E]"), "C(" + std::string(300, 'f') + "{})");
  EXPECT_EQ(parse(kV31, "[B]f[S"), "C(f[S)");
  EXPECT_EQ(parse(kHermes, "Use <tool_call> to call."), "C(Use  to call.)");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>"), "C({\"name\": 5, \"arguments\": {}})");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"), "C({\"name\": \"f\", \"arguments\": [1]})");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"arguments\": {}}</tool_call>"), "C({\"arguments\": {}})");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"\\ud800\"}</tool_call>"), "C({\"name\": \"\\ud800\"})");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"x\": \"<tool_call>\"x}"), "C({\"x\": \"\"x})");
  EXPECT_EQ(parse(kHermes, "<tool_call"), "C(<tool_call)");
  EXPECT_EQ(parse(kHermes, "<tool_call>\n<tool_call>{\"name\": \"f\"}"), "N0(f) A0({}) E0");
}

TEST(OutputParser, ABrokenCallEndsWithoutItsEnd) {
  EXPECT_EQ(parse(kV31, "[B]f[S]{\"a\": 1, oops}[E][B]g[S]{}[E]"), "N0(f) A0({\"a\": 1, ) N1(g) A1({}) E1");
  EXPECT_EQ(parse(kV31, "[B]f[S]{\"a\": \"b"), "N0(f) A0({\"a\": \"b)");
  EXPECT_EQ(parse(kV31, "[B]f[S]{\"a\": 1[E] text"), "N0(f) A0({\"a\": 1) C(text)");
  EXPECT_EQ(parse(kV31, "[B]f[S]{} and more[E]"), "N0(f) A0({})");
  EXPECT_EQ(parse(kV31, "[B]f[S]{}[S]x[E]"), "N0(f) A0({})");
  EXPECT_EQ(parse(kV31, "[B]f[S]{\"a\": [1}[B]g[S]{}[CE]"), "N0(f) A0({\"a\": [1) N1(g) A1({}) E1");
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"x\"}</tool_call>"), "N0(f) A0({})");
}

TEST(OutputParser, MarksInsideJsonStringsAreData) {
  EXPECT_EQ(parse(kV31, "[B]f[S]{\"a\": \"[E]\\\"<think>[B]\"}[E]"), real("N0(f) A0({\"a\": \"[E]\\\"<think>[B]\"}) E0"));
  EXPECT_EQ(parse(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"t\": \"</tool_call>\"}}</tool_call>"),
            "N0(f) A0({\"t\": \"</tool_call>\"}) E0");
}

TEST(OutputParser, TextAroundCalls) {
  EXPECT_EQ(parse(kV31, "\n[CS][B]f[S]{}[E]\n[CE]\n\nDone.\n"), "N0(f) A0({}) E0 C(Done.\n)");
  EXPECT_EQ(parse(kHermes, "a\n<tool_call>{\"name\": \"f\"}</tool_call>\nb"), "C(a) N0(f) A0({}) E0 C(\nb)");
  EXPECT_EQ(parse(kV31, "[E]a[S]b[CE]c"), "C(abc)");
  EXPECT_EQ(parse(kV31, " \n "), "C( \n )");
}

TEST(OutputParser, OneCallWhenCallsAreNotParallel) {
  EXPECT_EQ(parse(kV31, "x[B]f[S]{}[E][B]g[S]{}[E]text<think>", {.parallel_tool_calls = false}), "C(x) N0(f) A0({}) E0");
  EXPECT_EQ(parse(kV31, "[B]no[E][B]g[S]{}[E]text", {.parallel_tool_calls = false}), "C(no) N0(g) A0({}) E0");
  EXPECT_EQ(parse(kV31, "[B]f[S]{]}[E]text", {.parallel_tool_calls = false}), "N0(f) A0({)");
}

TEST(OutputParser, CallsInsideReasoningAreReasoning) {
  EXPECT_EQ(parse(kV31, "I [B]f[S]{}[E]\n</think>\n[B]f[S]{}[E]", {.starts_in_reasoning = true}), "R(I f{}) N0(f) A0({}) E0");
  EXPECT_EQ(parse(kHermes, "<tool_call>{}</tool_call>", {.starts_in_reasoning = true}), "R({})");
  EXPECT_EQ(parse(kHermes, "a</thi<tool_call>", {.starts_in_reasoning = true}), "R(a</thi)");
  EXPECT_EQ(parse(kHermes, "a<tool_call>{\"name\": \"f\"}</tool_call><think>b</think>\nc"), "C(a) N0(f) A0({}) E0 R(b) C(c)");
}

// What the encoders write for a turn with calls is what models were trained to say.
TEST(OutputParser, ReadsWhatTheEncodersWrite) {
  const Json messages = Json::parse(R"([{"role": "user", "content": "u"}, {"role": "assistant", "content": "Let me look.", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"x\\n</think>\"}"}},
    {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"b": [1, 2.5], "c": "é"}}}]}])");
  int encoders = 0;
  for (const std::string& name : prompt_encoder_names()) {
    auto encoder = make_prompt_encoder({}, name);
    if (!encoder.ok()) continue;  // jinja, without a template
    auto format = find_tool_format("auto", name, "");
    ASSERT_TRUE(format.ok());
    if (*format == ToolFormat::kNone) continue;
    auto text = (*encoder)->render(messages, nullptr, {.add_generation_prompt = false});
    ASSERT_TRUE(text.ok()) << text.error().message;
    const size_t begin = text->find("Let me look.");
    ASSERT_NE(begin, std::string::npos) << name;
    const size_t end = std::min(text->find("<｜end▁of▁sentence｜>"), text->find("<|im_end|>", begin));
    EXPECT_EQ(parse(*format, text->substr(begin, end - begin)),
              "C(Let me look.) N0(f) A0({\"a\": \"x\\n</think>\"}) E0 N1(g) A1({\"b\": [1, 2.5], \"c\": \"é\"}) E1")
        << name;
    encoders++;
  }
  EXPECT_GE(encoders, 7);
}

TEST(OutputParser, LongAnswersOfNestedBeginningsAreLinear) {
  std::string text;
  for (int i = 0; i < 100'000; i++) text += "<tool_call>{\"x\": \"";
  OutputParser parser({.tools = kHermes});
  size_t bytes = 0;
  for (const OutputEvent& event : parser.push(text)) bytes += event.text.size();
  for (const OutputEvent& event : parser.finish()) bytes += event.text.size();
  EXPECT_GT(bytes, 100'000u);
  EXPECT_LT(bytes, text.size());
}

// Whatever the text and wherever it is cut: the same events; arguments are at every moment the beginning of a JSON object,
// and whole at kToolEnd; no mark is in the content.
TEST(OutputParser, RandomTextsAndCuts) {
  std::mt19937 random(11);
  const std::string words[] = {"<think>",
                               "</think>",
                               "[CS]",
                               "[CE]",
                               "[B]",
                               "[E]",
                               "[S]",
                               "<tool_call>",
                               "</tool_call>",
                               "f",
                               "function",
                               "\n",
                               "```json\n",
                               "\n```",
                               "{",
                               "}",
                               "{}",
                               "{\"a\": [1, \"é\"]}",
                               "{\"name\": \"f\", \"arguments\": ",
                               "\"name\": \"g\"",
                               ", ",
                               "\"",
                               "<",
                               "<｜tool",
                               " ",
                               "中",
                               "{\"arguments\": {}, ",
                               "[B]f[S]{\"a\": ",
                               "\"x\"}",
                               "[B]f[S]",
                               "{}[E]",
                               "<tool_call>{\"name\": \"f\", \"arguments\": ",
                               "{}}</tool_call>",
                               "[B]function[S]f\n```json\n{}\n```[E]"};
  const std::string forbidden[] = {"tool▁call", "tool▁sep｜>", "<tool_call>", "</tool_call>"};
  int complete = 0, broken = 0;
  for (int round = 0; round < 6000; round++) {
    std::string text;
    for (size_t n = random() % 24; n > 0; n--) text += real(words[random() % std::size(words)]);
    const ToolFormat formats[] = {ToolFormat::kNone, kV3, kV31, kHermes};
    const OutputParserOptions options{.parse_reasoning = random() % 4 != 0,
                                      .starts_in_reasoning = random() % 4 == 0,
                                      .tools = formats[random() % 4],
                                      .parallel_tool_calls = random() % 4 != 0};
    const std::vector<OutputEvent> expected = parse_parts(options, {text});
    for (int cut = 0; cut < 4; cut++) {
      std::vector<std::string> parts;
      for (size_t at = 0; at < text.size();) {
        parts.push_back(text.substr(at, 1 + random() % (cut == 0 ? 1 : 12)));
        at += parts.back().size();
      }
      ASSERT_EQ(shown_events(parse_parts(options, parts)), shown_events(expected)) << text;
    }
    std::string content;
    for (size_t i = 0; i < expected.size(); i++) {
      if (expected[i].kind <= OutputEvent::kContent) content += expected[i].text;
      if (expected[i].kind != OutputEvent::kToolArguments) continue;
      ASSERT_EQ(expected[i - 1].kind, OutputEvent::kToolName);
      const bool ends = i + 1 < expected.size() && expected[i + 1].kind == OutputEvent::kToolEnd;
      (ends ? complete : broken)++;
      JsonPrefix json;
      for (char c : expected[i].text) ASSERT_TRUE(json.put(c)) << expected[i].text;
      ASSERT_TRUE(!ends || Json::accept(expected[i].text)) << expected[i].text;
      ASSERT_EQ(expected[i].text[0], '{');
    }
    const bool deepseek = options.tools == kV3 || options.tools == kV31;
    for (size_t i = 0; options.tools != ToolFormat::kNone && i < std::size(forbidden); i++)
      if ((i < 2) == deepseek) {
        ASSERT_EQ(content.find(forbidden[i]), std::string::npos) << text;
      }
  }
  EXPECT_GT(complete, 500);
  EXPECT_GT(broken, 100);
}

}  // namespace
}  // namespace dg
