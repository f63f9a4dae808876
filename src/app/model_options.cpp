#include "app/model_options.h"

#include <fmt/core.h>

#include <algorithm>
#include <random>

#include "app/terminal.h"
#include "base/json.h"

namespace dg {

Result<std::string> model_argument(const Options& options, std::vector<std::string>* rest) {
  std::vector<std::string> arguments = options.arguments();
  std::string model = options.has("model") ? options.text("model") : "";
  if (model.empty()) {
    if (arguments.empty() || arguments.front().empty())
      return input_error(fmt::format("expected a model: a directory or a name such as mini-r1; usage: dougong {} {} [options]",
                                     options.command().name, options.command().arguments));
    model = arguments.front();
    arguments.erase(arguments.begin());
  }
  if (rest) *rest = std::move(arguments);
  else if (!arguments.empty())
    return input_error(fmt::format("unexpected argument {}: the model is {} already", in_quotes(arguments.front()), in_quotes(model)));
  return model;
}

OpenOptions open_options(const Options& options) {
  OpenOptions open;
  auto text = [&](const char* name, std::string* to) {
    if (options.has(name)) *to = options.text(name);
  };
  text("backend", &open.backend);
  text("isa", &open.isa);
  open.dummy_weights = options.has("load-format") && options.text("load-format") == "dummy";
  if (options.has("gpu")) open.gpu = static_cast<int>(options.integer("gpu"));
  if (options.has("tensor-parallel-size")) open.tensor_parallel = static_cast<int>(options.integer("tensor-parallel-size"));
  open.expert_parallel = options.has("enable-expert-parallel") && options.flag("enable-expert-parallel");
  if (options.has("collective-timeout")) open.collective_timeout = options.number("collective-timeout");
  text("dtype", &open.dtype);
  text("quantization", &open.quantization);
  text("kv-cache-dtype", &open.kv_cache_dtype);
  text("chat-format", &open.chat_format);
  open.batch_invariant = options.has("deterministic") && options.flag("deterministic");
  if (options.has("threads")) open.threads = static_cast<int>(options.integer("threads"));
  if (options.has("max-model-len")) open.max_model_len = options.integer("max-model-len");
  if (options.has("max-num-batched-tokens"))
    open.max_step_tokens = std::max(options.integer("max-num-batched-tokens"), options.integer("chunk"));
  if (options.has("profile") && options.given("profile")) {
    open.profile = true;
    open.profile_trace = options.text("profile");
    if (open.profile_trace == "1" || open.profile_trace == "true") open.profile_trace.clear();  // DOUGONG_PROFILE=1
  }
  open.progress = options.has("quiet") && !options.flag("quiet") && error_is_terminal();
  return open;
}

int64_t max_context(const OpenedModel& model) {
  const ExecutorOptions& executor = model.executor->options();
  int64_t share = executor.kv_tokens / executor.max_step_sequences - executor.block_tokens;
  return std::min(model.config.max_position, share);
}

GenerateLimits generate_limits(const Options& options, const OpenedModel& model) {
  return {.max_context = max_context(model), .chunk_tokens = options.integer("chunk")};
}

SamplingParams sampling_params(const Options& options, const GenerationConfig& generation, bool use_model_defaults) {
  SamplingParams params;
  const GenerationConfig defaults = use_model_defaults ? generation : GenerationConfig{};
  params.top_k = options.given("top-k") ? options.integer("top-k") : defaults.top_k.value_or(0);
  params.top_p = options.given("top-p") ? options.number("top-p") : defaults.top_p.value_or(1);
  params.min_p = options.given("min-p") ? options.number("min-p") : defaults.min_p.value_or(0);
  params.repetition_penalty =
      options.given("repetition-penalty") ? options.number("repetition-penalty") : defaults.repetition_penalty.value_or(1);
  params.presence_penalty = options.number("presence-penalty");
  params.frequency_penalty = options.number("frequency-penalty");
  // Who asks for a filter wants to sample; else the model's word counts, and do_sample false means greedy.
  bool filters = options.given("top-k") || options.given("top-p") || options.given("min-p");
  bool samples = defaults.do_sample.value_or(defaults.temperature.has_value()) || filters;
  if (options.given("temperature")) params.temperature = options.number("temperature");
  else params.temperature = samples ? defaults.temperature.value_or(1) : 0;
  if (options.given("seed")) params.seed = static_cast<uint64_t>(options.integer("seed"));
  else if (use_model_defaults) params.seed = std::random_device{}();
  return params;
}

ChatOptions chat_options(const Options& options) {
  ChatOptions chat;
  if (options.given("thinking")) chat.thinking = options.flag("thinking");
  return chat;
}

Error no_chat_format(const OpenedModel& model) {
  return input_error(
      fmt::format("{}: has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); use `dougong "
                  "generate --raw`, or name a format with --chat-format",
                  model.path));
}

Result<EncodedChat> encode_chat(const OpenedModel& model, const Json& messages, const Json& tools, const ChatOptions& options) {
  if (!model.prompt) return no_chat_format(model);
  DG_ASSIGN(std::string text, model.prompt->render(messages, tools, options));
  return EncodedChat{model.tokenizer->encode(text, {.add_special = false}), prompt_ends_in_reasoning(text)};
}

double prefill_tokens_per_s(const GenerateResult& result) {
  return result.prefill_s > 0 ? static_cast<double>(result.prompt_tokens - result.cached_tokens) / result.prefill_s : 0;
}

double decode_tokens_per_s(const GenerateResult& result) {
  // The first token comes out of the prefill.
  return result.decode_s > 0 && result.ids.size() > 1 ? static_cast<double>(result.ids.size() - 1) / result.decode_s : 0;
}

std::string statistics_line(const GenerateResult& result) {
  std::string cached = result.cached_tokens > 0 ? fmt::format(" ({} cached)", result.cached_tokens) : "";
  return fmt::format("prompt {} tokens{}, {:.3g} s ({:.0f} tokens/s) | answer {} tokens, {:.3g} s ({:.1f} tokens/s) | {}",
                     result.prompt_tokens, cached, result.prefill_s, prefill_tokens_per_s(result), result.ids.size(), result.decode_s,
                     decode_tokens_per_s(result), finish_reason_name(result.reason));
}

std::string json_line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace dg
