// Names of tool formats, and the grammars of tool_choice.
#include <gtest/gtest.h>

#include "base/json.h"
#include "text/bpe.h"
#include "text/grammar.h"
#include "text/output_parser.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace dg {
namespace {

ToolFormat format_of(std::string_view name, std::string_view encoder = "", std::string_view chat_template = "") {
  auto format = find_tool_format(name, encoder, chat_template);
  EXPECT_TRUE(format.ok()) << (format.ok() ? "" : format.error().message);
  return format.ok() ? *format : ToolFormat::kNone;
}

TEST(ToolFormat, Names) {
  EXPECT_EQ(format_of("none", "qwen3"), ToolFormat::kNone);
  EXPECT_EQ(format_of("deepseek_v3"), ToolFormat::kDeepseekV3);
  EXPECT_EQ(format_of("deepseekv31"), ToolFormat::kDeepseekV31);
  EXPECT_EQ(format_of("qwen3"), ToolFormat::kHermes);
  for (ToolFormat format : {ToolFormat::kNone, ToolFormat::kDeepseekV3, ToolFormat::kDeepseekV31, ToolFormat::kHermes})
    EXPECT_EQ(format_of(tool_format_name(format)), format);
  auto wrong = find_tool_format("gpt\n4", "", "");
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(
      wrong.error().message,
      "--tool-call-parser: expected one of auto, none, deepseek_v3, deepseekv3, deepseek_v31, deepseekv31, hermes, qwen3, found \"gpt 4\"");
}

TEST(ToolFormat, AutoKnowsTheModel) {
  EXPECT_EQ(format_of("auto", "deepseek_r1_0528"), ToolFormat::kDeepseekV3);
  EXPECT_EQ(format_of("auto", "mini_r1"), ToolFormat::kDeepseekV31);
  EXPECT_EQ(format_of("auto", "qwen3"), ToolFormat::kHermes);
  EXPECT_EQ(format_of("auto", "deepseek_v2"), ToolFormat::kNone);
  EXPECT_EQ(format_of("auto", "jinja", "{{ '<｜tool▁call▁begin｜>' + t.type + '<｜tool▁sep｜>' + t.name + '\\n```json' }}"),
            ToolFormat::kDeepseekV3);
  EXPECT_EQ(format_of("auto", "jinja", "{{ '<｜tool▁call▁begin｜>' + t.name + '<｜tool▁sep｜>' }}"), ToolFormat::kDeepseekV31);
  EXPECT_EQ(format_of("auto", "jinja", "{{ '<tool_call>' }}"), ToolFormat::kHermes);
  EXPECT_EQ(format_of("auto", "jinja", "{{ '<｜DSML｜tool_calls>' }}"), ToolFormat::kNone);
  EXPECT_EQ(tool_format_marks(ToolFormat::kHermes), (std::vector<std::string>{"<tool_call>", "</tool_call>"}));
  EXPECT_EQ(tool_format_marks(ToolFormat::kDeepseekV3).size(), 5u);
  EXPECT_TRUE(tool_format_marks(ToolFormat::kNone).empty());
}

const Json kTwoTools = Json::parse(R"([
  {"type": "function", "function": {"name": "f", "strict": true, "parameters": {"type": "object", "properties": {"a": {"const": "\"é"}}}}},
  {"type": "function", "function": {"name": "say \"x\"", "parameters": {"type": "object", "properties": {"b": {}}}}}])");

std::string grammar_text(ToolFormat format, ToolGrammarOptions options, const Json& tools = kTwoTools) {
  auto spec = tool_grammar(format, tools, options);
  EXPECT_TRUE(spec.ok()) << (spec.ok() ? "" : spec.error().message);
  if (!spec.ok() || !*spec) return "";
  EXPECT_EQ((*spec)->kind, GrammarKind::kEbnf);
  EXPECT_EQ((*spec)->start_after, options.start_after);
  return "trigger=" + (*spec)->trigger + "\n" + (*spec)->text;
}

TEST(ToolGrammar, RequiredCalls) {
  EXPECT_EQ(grammar_text(ToolFormat::kDeepseekV31, {.required = true, .start_after = "</think>"}),
            R"(trigger=
root ::= ( "\n" "\n"? )? <[<｜tool▁calls▁begin｜>]> <[<｜tool▁call▁begin｜>]> body <[<｜tool▁call▁end｜>]> )"
            R"(( <[<｜tool▁call▁begin｜>]> body <[<｜tool▁call▁end｜>]> )* <[<｜tool▁calls▁end｜>]> 
body ::= body-0 | body-1
arguments-0 ::= %json{"type":"object","properties":{"a":{"const":"\"é"}}}
body-0 ::= "f" <[<｜tool▁sep｜>]> arguments-0
body-1 ::= "say \"x\"" <[<｜tool▁sep｜>]> object
object ::= %json{"type":"object"}
)");
  EXPECT_EQ(grammar_text(ToolFormat::kDeepseekV3, {.function = "f", .parallel = false}), R"(trigger=
root ::= <[<｜tool▁calls▁begin｜>]> <[<｜tool▁call▁begin｜>]> body <[<｜tool▁call▁end｜>]> <[<｜tool▁calls▁end｜>]> 
body ::= body-0
arguments-0 ::= %json{"type":"object","properties":{"a":{"const":"\"é"}}}
body-0 ::= "function" <[<｜tool▁sep｜>]> "f\n```json\n" arguments-0 "\n```"
)");
}

TEST(ToolGrammar, StrictToolsWaitForTheMark) {
  EXPECT_EQ(grammar_text(ToolFormat::kHermes, {}), R"(trigger=<tool_call>
root ::= body <[</tool_call>]> ( "\n" <[<tool_call>]> body <[</tool_call>]> )* 
body ::= body-0 | body-1
arguments-0 ::= %json{"type":"object","properties":{"a":{"const":"\"é"}}}
body-0 ::= "\n{\"name\": \"f\", \"arguments\": " arguments-0 "}\n"
body-1 ::= "\n{\"name\": \"say \\\"x\\\"\", \"arguments\": " object "}\n"
object ::= %json{"type":"object"}
)");
  EXPECT_EQ(
      grammar_text(ToolFormat::kDeepseekV3, {}).find("trigger=<｜tool▁call▁begin｜>\nroot ::= body <[<｜tool▁call▁end｜>]> ( \"\\n\" "),
      0u);
}

// A tokenizer of single bytes and the marks of both families.
std::unique_ptr<Tokenizer> byte_and_mark_tokenizer() {
  Json vocab = Json::object(), added = Json::array();
  for (int b = 0; b < 256; b++) {
    std::string symbol;
    unicode::append_utf8(symbol, ByteAlphabet::char_of(static_cast<unsigned char>(b)));
    vocab[symbol] = b;
  }
  int id = 256;
  for (ToolFormat format : {ToolFormat::kDeepseekV3, ToolFormat::kHermes})
    for (const std::string& mark : tool_format_marks(format))
      added.push_back({{"id", id++}, {"content", mark}, {"special", true}, {"normalized", false}});
  added.push_back({{"id", id++}, {"content", "</think>"}, {"special", false}, {"normalized", false}});
  added.push_back({{"id", id++}, {"content", "<end>"}, {"special", true}, {"normalized", false}});
  const Json json = {{"added_tokens", added},
                     {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
                     {"decoder", {{"type", "ByteLevel"}}},
                     {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  auto tokenizer = Tokenizer::from_json(json.dump(), "", "test");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

// Whether the grammar takes the text and may end behind it.
bool derives(const Tokenizer& tokenizer, const GrammarSpec& spec, const std::string& text) {
  GrammarCompiler compiler(tokenizer, tokenizer.vocab_size(), {*tokenizer.id_of("<end>")});
  auto compiled = compiler.compile(spec);
  EXPECT_TRUE(compiled.ok()) << (compiled.ok() ? "" : compiled.error().message);
  if (!compiled.ok()) return false;
  GrammarState state(*compiled);
  for (int32_t id : tokenizer.encode(text))
    if (!state.accept(id)) return false;
  return state.can_end();
}

TEST(ToolGrammar, DerivesTheTextThatTheParserReads) {
  auto tokenizer = byte_and_mark_tokenizer();
  ASSERT_TRUE(tokenizer);
  const Json tools = Json::parse(R"([
    {"function": {"name": "f", "strict": true, "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
      "additionalProperties": false}}}, {"function": {"name": "g"}}])");
  struct Case {
    ToolFormat format;
    const char *first, *second;  // calls of f with {"a":1} and of g with {}
    const char* end;
  };
  const Case cases[] = {
      {ToolFormat::kDeepseekV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>",
       "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"},
      {ToolFormat::kDeepseekV3,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>",
       "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"},
      {ToolFormat::kHermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
       "\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>", ""},
  };
  for (const Case& c : cases) {
    const std::string two = std::string(c.first) + c.second + c.end;
    OutputParser parser({.tools = c.format});
    parser.push(two);
    parser.finish();
    EXPECT_EQ(parser.calls(), 2) << two;
    auto spec = [&](ToolGrammarOptions options) { return **tool_grammar(c.format, tools, options); };
    EXPECT_TRUE(derives(*tokenizer, spec({.required = true}), two)) << two;
    EXPECT_TRUE(derives(*tokenizer, spec({.required = true, .start_after = "</think>"}), "any thought</think>\n\n" + two)) << two;
    EXPECT_FALSE(derives(*tokenizer, spec({.required = true}), "text " + two));
    EXPECT_FALSE(derives(*tokenizer, spec({.required = true}), std::string(c.first).replace(two.find("1"), 1, "x") + c.end));
    EXPECT_FALSE(derives(*tokenizer, spec({.required = true, .parallel = false}), two));
    EXPECT_TRUE(derives(*tokenizer, spec({.function = "f"}), std::string(c.first) + c.end));
    EXPECT_FALSE(derives(*tokenizer, spec({.function = "f"}), two));
    EXPECT_TRUE(derives(*tokenizer, spec({}), "Text comes first. " + two)) << two;
    EXPECT_TRUE(derives(*tokenizer, spec({}), "Only text."));
    EXPECT_FALSE(derives(*tokenizer, spec({}), two + " more text"));
  }
}

TEST(ToolGrammar, SchemasOfStrictToolsAreObjects) {
  auto text = [](const char* parameters) {
    Json tools = Json::parse(R"([{"function": {"name": "f", "strict": true}}])");
    if (*parameters) tools[0]["function"]["parameters"] = Json::parse(parameters);
    std::string all = grammar_text(ToolFormat::kDeepseekV31, {.required = true}, tools);
    size_t at = all.find("%json{") + 5;
    return all.substr(at, all.find('\n', at) - at);
  };
  EXPECT_EQ(text(""), R"({"type":"object","properties":{},"additionalProperties":false})");
  EXPECT_EQ(text("{}"), R"({"type":"object"})");
  EXPECT_EQ(text(R"({"$ref": "#/$defs/a"})"), R"({"$ref":"#/$defs/a"})");
}

TEST(ToolGrammar, NoneWhereNothingIsDemanded) {
  Json loose = kTwoTools;
  loose[0]["function"]["strict"] = false;
  EXPECT_TRUE(any_strict_tool(kTwoTools));
  EXPECT_FALSE(any_strict_tool(loose));
  EXPECT_FALSE(any_strict_tool(nullptr));
  EXPECT_FALSE(any_strict_tool(Json::parse("[1, {\"function\": 2}]")));
  EXPECT_EQ(grammar_text(ToolFormat::kHermes, {}, loose), "");
  EXPECT_EQ(grammar_text(ToolFormat::kHermes, {}, nullptr), "");
  EXPECT_EQ(grammar_text(ToolFormat::kNone, {}), "");
}

TEST(ToolGrammar, Errors) {
  auto error = [](ToolFormat format, const Json& tools, ToolGrammarOptions options) {
    auto spec = tool_grammar(format, tools, options);
    EXPECT_FALSE(spec.ok());
    return spec.ok() ? "" : spec.error().message;
  };
  EXPECT_EQ(error(ToolFormat::kHermes, kTwoTools, {.function = "h\n"}),
            R"(tool_choice.function.name: expected one of the request's tools ("f", "say \"x\""), found "h\n")");
  EXPECT_EQ(error(ToolFormat::kHermes, nullptr, {.required = true}),
            "tool_choice: expected tools to choose from, found none; add tools or use \"none\"");
  EXPECT_EQ(error(ToolFormat::kNone, kTwoTools, {.required = true}).find("tool_choice: the model's tool format is none"), 0u);
  EXPECT_EQ(error(ToolFormat::kHermes, Json::parse(R"([{"function": {"name": ""}}])"), {.required = true}),
            "tools[0].function.name: expected 1 to 256 bytes without control characters, found 0 bytes");
}

}  // namespace
}  // namespace dg
