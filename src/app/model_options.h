// What the options of the running commands mean: which model, how it is opened, how tokens are picked.
#pragma once
#include <string>
#include <vector>

#include "app/open_model.h"
#include "base/json_fwd.h"
#include "config/options.h"
#include "engine/generate.h"
#include "engine/sampler.h"
#include "text/chat.h"

namespace dg {

// The model is --model or the first argument; `rest` gets the other arguments.
Result<std::string> model_argument(const Options& options, std::vector<std::string>* rest = nullptr);

OpenOptions open_options(const Options& options);

// Longest context of one sequence of an opened model: what its cache was made for.
int64_t max_context(const OpenedModel& model);
GenerateLimits generate_limits(const Options& options, const OpenedModel& model);

// Flags over generation_config.json over greedy. Without `use_model_defaults` (eval) only flags count, and the seed is 0
// unless given; otherwise a missing seed is drawn.
SamplingParams sampling_params(const Options& options, const GenerationConfig& generation, bool use_model_defaults);

ChatOptions chat_options(const Options& options);

// A conversation in the model's chat format. The error says that the model has none.
struct EncodedChat {
  std::vector<int32_t> ids;
  bool in_reasoning = false;  // the answer begins inside <think>
};
Error no_chat_format(const OpenedModel& model);
Result<EncodedChat> encode_chat(const OpenedModel& model, const Json& messages, const Json& tools, const ChatOptions& options);

// "prompt 14 tokens, 0.021 s (667 tokens/s) | answer 52 tokens, 0.41 s (124 tokens/s) | stop"
std::string statistics_line(const GenerateResult& result);
double prefill_tokens_per_s(const GenerateResult& result);
double decode_tokens_per_s(const GenerateResult& result);

// JSON on one line that is valid UTF-8 whatever the text was.
std::string json_line(const Json& json);

}  // namespace dg
