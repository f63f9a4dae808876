// Recognition of a template: conversations that tell the known formats, their variants and modified templates apart.
#include "base/json.h"
#include "text/prompt_native.h"

namespace dg {
namespace {

constexpr const char* kTools = R"([{"type": "function", "function": {"name": "look_up", "description": "Finds <things> & \"more\"",
  "parameters": {"type": "object", "properties": {"q": {"type": "string", "description": "中文"}, "n": {"type": "number", "maximum": 1.0}},
  "required": ["q"]}}}, {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object",
  "properties": {}}}}])";

struct Probe {
  const char* messages;
  bool tools = false;  // has calls and results
};

constexpr Probe kProbes[] = {
    {R"([{"role": "user", "content": "u1"}])"},
    {R"([{"role": "user", "content": " u1 \n"}, {"role": "assistant", "content": " a1 \n"}, {"role": "user", "content": "u2"}])"},
    {R"([{"role": "system", "content": " s1 "}, {"role": "user", "content": "u1"}])"},
    {R"([{"role": "system", "content": "s1"}, {"role": "user", "content": "u1"}, {"role": "system", "content": "s2"},
         {"role": "assistant", "content": "a1"}, {"role": "user", "content": "u2"}])"},
    {R"([{"role": "system", "content": "s1"}, {"role": "system", "content": "s2"}, {"role": "user", "content": ""}])"},
    {R"([{"role": "user", "content": "u1"}, {"role": "assistant", "content": "<think>\nr1\n</think>\n\na1</think>x"}, {"role": "user",
        "content": "u2"}])"},
    {R"([{"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1", "reasoning_content": "r1"}, {"role": "user",
        "content": "u2"},
         {"role": "assistant", "content": "a2", "reasoning_content": "r2"}])"},
    {R"([{"role": "user", "content": "u1"}, {"role": "user", "content": "u2"}, {"role": "assistant", "content": "a1"},
         {"role": "assistant", "content": "a2"}])"},
    {R"([{"role": "assistant", "content": "a0"}, {"role": "user", "content": "<｜User｜> {{ x }} <|im_end|> é😀"}])"},
    {R"([{"role": "user", "content": "u1"}, {"role": "assistant", "content": null, "tool_calls": [
         {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{\"q\":\"x\"}"}}]},
         {"role": "tool", "tool_call_id": "c1", "content": "r1"}])",
     true},
    {R"([{"role": "user", "content": "u1"}, {"role": "assistant", "content": "words", "tool_calls": [
         {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{\"q\": \"x\", \"n\": 1.50}"}},
         {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
         {"role": "tool", "tool_call_id": "c1", "content": "r1"}, {"role": "tool", "tool_call_id": "c2", "content": "r2"},
         {"role": "assistant", "content": "r</think>done"}, {"role": "user", "content": "u2"}, {"role": "assistant", "content": "",
         "tool_calls": [
         {"id": "c3", "type": "function", "function": {"name": "now", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "c3",
         "content": "r3"},
         {"role": "assistant", "content": "<think>t</think>w", "tool_calls": [
         {"id": "c4", "type": "function", "function": {"name": "now", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "c4",
         "content": "r4"},
         {"role": "assistant", "content": "end"}, {"role": "user", "content": "u3"}])",
     true},
};

}  // namespace

bool renders_equal(const NativeEncoder& native, const PromptEncoder& reference) {
  static const std::vector<Json> probes = [] {
    std::vector<Json> parsed;
    for (auto& probe : kProbes) parsed.push_back(Json::parse(probe.messages));
    return parsed;
  }();
  static const Json tools = Json::parse(kTools);
  for (size_t i = 0; i < probes.size(); i++) {
    if (kProbes[i].tools && !native.has_tools()) continue;  // refused, never rendered differently
    for (std::optional<bool> thinking : {std::optional<bool>(), std::optional(false), std::optional(true)}) {
      for (bool generate : {true, false}) {
        ChatOptions options{.add_generation_prompt = generate, .thinking = thinking};
        auto expected = reference.render(probes[i], nullptr, options);
        auto got = native.render(probes[i], nullptr, options);
        if (!expected.ok() || !got.ok() || *expected != *got) return false;
        if (!native.has_tools()) continue;
        auto expected_tools = reference.render(probes[i], tools, options);
        if (!expected_tools.ok()) return false;
        // A template that ignores `tools` loses nothing when the encoder describes them as the model's README says.
        if (native.describes_tools() && *expected_tools == *expected) continue;
        auto got_tools = native.render(probes[i], tools, options);
        if (!got_tools.ok() || *got_tools != *expected_tools) return false;
      }
    }
  }
  return true;
}

}  // namespace dg
