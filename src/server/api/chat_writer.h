// OpenAI's chat completions as text: chunks of a stream, or the whole object.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "server/api/answer_stream.h"

namespace dg::api {

struct StreamOptions {
  bool include_usage = false, continuous_usage = false;
};
// stream_options {include_usage, continuous_usage_stats}
StreamOptions read_stream_options(Fields& fields);

// {"prompt_tokens":...,"completion_tokens":...,"total_tokens":...,"prompt_tokens_details":...,"completion_tokens_details":...}
std::string openai_usage(const AnswerTotals& totals);
// vLLM's prompt_logprobs: [null, {"id": {"logprob", "rank", "decoded_token"}}, ...]
std::string prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const TokenInfo> tokens);
// "stop_reason" of vLLM: the stop text or id that was met, else null
void append_stop_reason(std::string& out, const Answer& answer, const std::vector<int32_t>& usual_ids);

struct ChatShape {
  std::string id, model;
  int64_t created_s = 0;
  int answers = 1;
  bool logprobs = false, token_ids = false;
  StreamOptions stream;
  std::vector<int32_t> prompt_ids;  // with token_ids
};

class ChatWriter : public AnswerWriter {
 public:
  ChatWriter(ApiContextPtr context, ChatShape shape);
  void begin(const AnswerTotals& totals, std::string& out) override;
  void prompt_logprobs(int part, std::span<const TokenInfo> tokens) override;
  void tokens(const Answer& answer, std::span<const TokenInfo> tokens) override;
  void event(const Answer& answer, const OutputEvent& event, const AnswerTotals& totals, std::string& out) override;
  void end_answer(const Answer& answer, const AnswerTotals& totals, std::string& out) override;
  void end(std::span<const Answer> answers, const AnswerTotals& totals, std::string& out) override;
  void fail(const ApiError& error, const AnswerTotals& totals, std::string& out) override;
  std::string body(std::span<const Answer> answers, const AnswerTotals& totals) override;

 private:
  struct Choice {
    bool begun = false;      // the chunk with the role is out
    std::string logprobs;    // objects, comma separated, that wait for a chunk
    size_t ids_written = 0;  // of Answer::ids
  };
  void chunk(const Answer& answer, std::string_view delta, bool last, const AnswerTotals& totals, std::string& out,
             std::string_view more = {});
  void begin_choice(const Answer& answer, const AnswerTotals& totals, std::string& out);
  void append_token(std::string& out, int32_t id, float logprob) const;
  std::string message(const Answer& answer) const;

  const ApiContextPtr context_;
  const ChatShape shape_;
  std::string head_;  // of every chunk, up to the choices
  std::vector<Choice> choices_;
  std::string prompt_logprobs_ = "null";
  std::string delta_;  // scratch
};

}  // namespace dg::api
