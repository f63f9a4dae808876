// Fuzzes the Jinja interpreter: the input is a template, rendered over a fixed conversation with small limits (so each run
// is bounded in time).
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/json.h"
#include "text/jinja_template.h"

namespace {

const char* kVariables = R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "谢 <think>a</think> b"},
  {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f",
  "arguments": {"a": [1, 2.5, null]}}}]},
  {"role": "tool", "tool_call_id": "c", "content": "r"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
  "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": true})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const dg::Json variables = dg::Json::parse(kVariables);
  std::string_view source(reinterpret_cast<const char*>(data), size);
  dg::JinjaLimits limits;
  limits.max_steps = 100'000;
  limits.max_output_bytes = 1 << 20;
  limits.max_created_bytes = 8 << 20;
  auto parsed = dg::JinjaTemplate::parse(source, limits);
  if (!parsed.ok()) {
    if (parsed.error().message.find('\n') != std::string::npos) std::abort();  // errors are one line
    return 0;
  }
  auto text = parsed->render(variables, std::time_t{1700000000});
  if (!text.ok() && text.error().message.find('\n') != std::string::npos) std::abort();
  auto again = parsed->render(variables, std::time_t{1700000000});
  if (text.ok() != again.ok() || (text.ok() && *text != *again)) std::abort();  // rendering has no memory
  return 0;
}
