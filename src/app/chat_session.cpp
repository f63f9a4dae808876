#include "app/chat_session.h"

#include <fmt/core.h>

#include "base/file.h"
#include "base/json.h"

namespace dg {

ChatSession::ChatSession(const Options& options, OpenedModel& model)
    : options_(options),
      model_(model),
      generator_(*model.executor, *model.tokenizer, generate_limits(options, model)),
      chat_(chat_options(options)),
      sampling_(sampling_params(options, model.generation, true)),
      system_(options.text("system")) {}

Json ChatSession::messages() const {
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const ChatTurn& turn : turns_) {
    Json message = {{"role", turn.role}, {"content", turn.content}};
    if (!turn.reasoning.empty()) message["reasoning_content"] = turn.reasoning;
    messages.push_back(std::move(message));
  }
  return messages;
}

Result<GenerateResult> ChatSession::answer(const std::string& text, const AnswerStyle& style, const std::atomic<bool>& cancel) {
  turns_.push_back({"user", text, ""});
  auto run = [&]() -> Result<GenerateResult> {
    DG_ASSIGN(EncodedChat encoded, encode_chat(model_, messages(), nullptr, chat_));
    GenerateRequest request;
    request.prompt = std::move(encoded.ids);
    request.sampling = sampling_;
    request.max_tokens = options_.integer("max-tokens");
    request.eos = model_.eos;
    request.stop = options_.list("stop");
    AnswerPrinter printer(style, true, encoded.in_reasoning);
    DG_ASSIGN(GenerateResult result, generator_.run(
                                         std::move(request), [&](int32_t, std::string_view piece) { printer.push(piece); }, &cancel));
    printer.finish();
    if (result.reason != FinishReason::kCancelled || !printer.content().empty())
      turns_.push_back({"assistant", printer.content(), printer.reasoning()});
    return result;
  };
  auto result = run();
  if (turns_.back().role == "user") turns_.pop_back();
  if (!result.ok()) return result;
  answers_++;
  prompt_tokens_ += result->prompt_tokens;
  cached_tokens_ += result->cached_tokens;
  output_tokens_ += static_cast<int64_t>(result->ids.size());
  prefill_s_ += result->prefill_s;
  decode_s_ += result->decode_s;
  return result;
}

void ChatSession::reset() {
  turns_.clear();
  generator_.reset();
}

Result<void> ChatSession::save(const std::string& path) const {
  Json out = {{"model", model_.path}, {"messages", messages()}};
  return write_file(path, out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::string ChatSession::statistics() const {
  double prefill = static_cast<double>(prompt_tokens_ - cached_tokens_), decode = static_cast<double>(output_tokens_ - answers_);
  return fmt::format(
      "{} answers | prompts {} tokens, {} of them cached, {:.3g} s ({:.0f} tokens/s) | answers {} tokens, {:.3g} s ({:.1f} tokens/s)",
      answers_, prompt_tokens_, cached_tokens_, prefill_s_, prefill_s_ > 0 ? prefill / prefill_s_ : 0, output_tokens_, decode_s_,
      decode_s_ > 0 ? decode / decode_s_ : 0);
}

}  // namespace dg
