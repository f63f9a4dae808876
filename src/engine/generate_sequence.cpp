#include "engine/generate_sequence.h"

#include <fmt/core.h>

#include <algorithm>

namespace dg {

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kDeadline: return "deadline";
    case FinishReason::kError: return "error";
  }
  return "?";
}

GenerateSequence::GenerateSequence(GenerateRequest request, const Tokenizer& tokenizer, std::unique_ptr<BlockTable> blocks,
                                   int64_t computed, int64_t max_context)
    : request_(std::move(request)),
      ids_(request_.prompt),
      computed_(computed),
      max_context_(max_context),
      blocks_(std::move(blocks)),
      detokenizer_(tokenizer, request_.skip_special),
      stop_(request_.stop) {
  auto prompt = static_cast<int64_t>(ids_.size());
  CHECK(computed < prompt && prompt < max_context);
  result_.prompt_tokens = prompt;
  result_.cached_tokens = computed;
  max_rows_ = request_.max_tokens > 0 ? std::min(max_context, prompt + request_.max_tokens) : max_context;
  if (request_.sampling.penalises()) history_.add_prompt(request_.prompt);
}

StepSequence GenerateSequence::next_step(int64_t max_rows) {
  int64_t rest = static_cast<int64_t>(ids_.size()) - computed_;
  bool decode = !prefilling();
  pending_ = decode ? 1 : std::min(rest, max_rows);
  return {.ids = std::span(ids_).subspan(static_cast<size_t>(computed_), static_cast<size_t>(pending_)),
          .first_position = computed_,
          .blocks = blocks_.get(),
          .decode = decode,
          .logits = pending_ == rest ? LogitsWanted::kLast : LogitsWanted::kNone};
}

Result<void> GenerateSequence::commit(std::span<const float> logits, Sampler& sampler, const TokenCallback& on_token) {
  computed_ += pending_;
  if (logits.empty()) return {};
  int32_t id = sampler.sample(logits, request_.sampling, history_, ids_.size());
  if (id < 0)
    return input_error(
        fmt::format("the model's logits after token {} are not numbers (NaN or -inf): the weights are damaged, or too large for "
                    "this type; check them with `dougong verify`, or try --dtype float32",
                    ids_.size()));
  ids_.push_back(id);
  result_.ids.push_back(id);
  if (request_.sampling.penalises()) history_.add_output(id);
  if (std::find(request_.eos.begin(), request_.eos.end(), id) != request_.eos.end()) {
    emit(id, "", on_token);
    finish(FinishReason::kStop, on_token);
    return {};
  }
  emit(id, stop_.push(detokenizer_.push(id)), on_token);
  if (stop_.stopped()) finish(FinishReason::kStop, on_token);
  else if (request_.max_tokens > 0 && static_cast<int64_t>(result_.ids.size()) >= request_.max_tokens)
    finish(FinishReason::kLength, on_token);
  else if (static_cast<int64_t>(ids_.size()) >= max_context_) finish(FinishReason::kContext, on_token);
  return {};
}

void GenerateSequence::finish(FinishReason reason, const TokenCallback& on_token) {
  finished_ = true;
  result_.reason = reason;
  std::string rest;
  if (!stop_.stopped()) {
    rest = stop_.push(detokenizer_.finish());
    if (!stop_.stopped()) rest += stop_.finish();
  }
  if (stop_.stopped()) result_.stop = stop_.matched();
  if (!rest.empty()) emit(-1, rest, on_token);
}

void GenerateSequence::emit(int32_t id, std::string_view text, const TokenCallback& on_token) {
  result_.text += text;
  if (on_token) on_token(id, text);
}

}  // namespace dg
