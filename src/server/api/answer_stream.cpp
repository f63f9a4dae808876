#include "server/api/answer_stream.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>

#include "base/json.h"
#include "base/log.h"
#include "server/api/generation_fields.h"

namespace dg::api {
namespace {

// What the responder's callbacks hold. `handles` does not change once they are registered.
struct Submitted {
  explicit Submitted(Engine& e) : engine(e) {}
  Engine& engine;
  std::vector<uint64_t> handles;
  std::atomic<bool> gone{false};  // the client: nothing more is formatted

  void cancel() {
    for (uint64_t handle : handles) engine.cancel(handle);
  }
};

class AnswerExchange {
 public:
  AnswerExchange(ApiContextPtr context, std::shared_ptr<HttpResponder> responder, const HttpRequest& http, AnswerPlan& plan,
                 std::unique_ptr<AnswerWriter> writer, ErrorShape shape)
      : context_(std::move(context)),
        responder_(std::move(responder)),
        writer_(std::move(writer)),
        shape_(shape),
        received_(http.received),
        submitted_(std::make_shared<Submitted>(context_->engine)),
        stream_(plan.stream),
        keep_text_(plan.keep_text || !plan.stream),
        keep_ids_(plan.keep_ids),
        include_reasoning_(plan.include_reasoning),
        discard_(plan.discard_output),
        model_(plan.model),
        parts_left_(plan.requests.size()) {
    int choice = 0;
    for (size_t part = 0; part < plan.requests.size(); part++) {
      const EngineRequest& request = plan.requests[part];
      totals_.prompt_tokens += static_cast<int64_t>(request.prompt.size());
      longest_prompt_ = std::max(longest_prompt_, static_cast<int64_t>(request.prompt.size()));
      deadline_ = std::min(deadline_, request.deadline);
      first_answer_.push_back(answers_.size());
      for (int i = 0; i < request.n; i++) {
        Answer& answer = answers_.emplace_back();
        answer.choice = choice++;
        answer.part = static_cast<int>(part);
        if (!plan.parse) continue;
        answer.parser = std::make_unique<OutputParser>(plan.parser);
        answer.inside_reasoning = plan.parser.parse_reasoning && plan.parser.starts_in_reasoning;
      }
    }
    first_answer_.push_back(answers_.size());
    if (stream_) writer_->begin(totals_, out_);
  }

  // Handler's thread: all requests are submitted, or `error` says why one was not.
  void start(std::vector<uint64_t> handles, const Error* error);

  // Engine's output thread.
  void prompt_logprobs(int part, std::span<const TokenInfo> tokens) {
    std::lock_guard lock(mutex_);
    if (!closed_) writer_->prompt_logprobs(part, tokens);
  }
  void embedding(int part, std::span<const float> values) {
    std::lock_guard lock(mutex_);
    if (!closed_) writer_->embedding(part, values);
  }
  void delta(int part, const OutputDelta& delta);
  void end(int part, const RequestUsage& usage, const Error* error);

 private:
  void count(Answer& answer, std::span<const TokenInfo> tokens);
  void keep(Answer& answer, const OutputEvent& event) const;
  void flush();
  void close();
  void close_with(ApiError error);
  ApiError ending_error(const Error& error) const;
  void log(const std::string& finish);

  const ApiContextPtr context_;
  const std::shared_ptr<HttpResponder> responder_;
  const std::unique_ptr<AnswerWriter> writer_;
  const ErrorShape shape_;
  const EngineClock::time_point received_;
  const std::shared_ptr<Submitted> submitted_;
  const bool stream_, keep_text_, keep_ids_, include_reasoning_, discard_;
  const std::string model_;

  std::mutex mutex_;  // everything below
  std::vector<Answer> answers_;
  std::vector<size_t> first_answer_;  // of every part, and one past the last
  AnswerTotals totals_;
  int64_t longest_prompt_ = 0;
  EngineClock::time_point deadline_ = EngineClock::time_point::max();
  size_t parts_left_;
  bool started_ = false;          // the handler has submitted everything
  bool begun_ = false;            // the stream
  bool closed_ = false;           // answered: later news of cancelled parts is dropped
  std::optional<Error> error_;    // the first part's that failed
  std::string out_;               // events that wait for start()
  int64_t generated_tokens_ = 0;  // as the engine counts: also after the client left
  double ttft_s_ = -1;
};

class PartListener : public RequestListener {
 public:
  PartListener(std::shared_ptr<AnswerExchange> exchange, int part) : exchange_(std::move(exchange)), part_(part) {}
  void on_prompt_logprobs(std::span<const TokenInfo> tokens) override { exchange_->prompt_logprobs(part_, tokens); }
  void on_embedding(std::span<const float> values) override { exchange_->embedding(part_, values); }
  void on_delta(const OutputDelta& delta) override { exchange_->delta(part_, delta); }
  void on_end(const RequestUsage& usage, const Error* error) override {
    exchange_->end(part_, usage, error);
    exchange_.reset();  // whoever still holds the listener holds no connection
  }

 private:
  std::shared_ptr<AnswerExchange> exchange_;
  const int part_;
};

void AnswerExchange::start(std::vector<uint64_t> handles, const Error* error) {
  std::unique_lock lock(mutex_);
  submitted_->handles = std::move(handles);
  if (error) {
    submitted_->cancel();
    ApiError answer = api_error(*error);
    if (error->kind == ErrorKind::kInput && longest_prompt_ >= context_->engine.options().max_model_len)
      answer.code = "context_length_exceeded";  // what OpenAI's clients look for
    if (error->kind == ErrorKind::kResource && context_->engine.stats().draining) {
      answer.status = 503;
      answer.type = "server_error";
    }
    closed_ = true;
    return reject(*responder_, answer, shape_);
  }
  started_ = true;
  if (error_) {
    submitted_->cancel();
    return close();
  }
  if (stream_) {
    responder_->begin_stream(200, "text/event-stream; charset=utf-8", {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
    begun_ = true;
    flush();
  }
  if (parts_left_ == 0) return close();
  lock.unlock();  // the callbacks may run at once
  auto submitted = submitted_;
  responder_->on_close([submitted] {
    submitted->gone = true;
    submitted->cancel();
  });
  if (!stream_) return;
  responder_->on_pressure([submitted](bool blocked) {
    for (uint64_t handle : submitted->handles) submitted->engine.pause(handle, blocked);
  });
}

void AnswerExchange::count(Answer& answer, std::span<const TokenInfo> tokens) {
  answer.tokens += static_cast<int64_t>(tokens.size());
  totals_.completion_tokens += static_cast<int64_t>(tokens.size());
  if (!answer.parser) return;
  for (const TokenInfo& token : tokens) {
    if (token.id == context_->think_begin_id && context_->options.parse_reasoning) answer.inside_reasoning = true;
    if (answer.inside_reasoning) {
      answer.reasoning_tokens++;
      totals_.reasoning_tokens++;
    }
    if (token.id == context_->think_end_id) answer.inside_reasoning = false;
  }
}

void AnswerExchange::keep(Answer& answer, const OutputEvent& event) const {
  switch (event.kind) {
    case OutputEvent::kReasoning:
      if (keep_text_) answer.reasoning += event.text;
      break;
    case OutputEvent::kContent:
      if (keep_text_) answer.content += event.text;
      break;
    case OutputEvent::kToolName: answer.calls.push_back({.name = event.text}); break;
    case OutputEvent::kToolArguments:
      if (keep_text_ && !answer.calls.empty()) answer.calls.back().arguments += event.text;
      break;
    case OutputEvent::kToolEnd:
      if (!answer.calls.empty()) answer.calls.back().complete = true;
      break;
  }
}

void AnswerExchange::delta(int part, const OutputDelta& delta) {
  std::lock_guard lock(mutex_);
  if (closed_ || submitted_->gone || discard_) return;
  size_t at = first_answer_[static_cast<size_t>(part)] + static_cast<size_t>(delta.index);
  if (at >= first_answer_[static_cast<size_t>(part) + 1]) return;
  Answer& answer = answers_[at];
  if (ttft_s_ < 0 && received_ != EngineClock::time_point())
    ttft_s_ = std::chrono::duration<double>(EngineClock::now() - received_).count();

  count(answer, delta.tokens);
  if (keep_ids_)
    for (const TokenInfo& token : delta.tokens) answer.ids.push_back(token.id);
  std::span<const TokenInfo> shown = delta.tokens;
  if (delta.stop_id >= 0 && !shown.empty() && shown.back().id == delta.stop_id) shown = shown.first(shown.size() - 1);
  if (!shown.empty()) writer_->tokens(answer, shown);

  std::vector<OutputEvent> events;
  if (answer.parser) {
    events = answer.parser->push(delta.text);
    if (delta.finished)
      for (OutputEvent& event : answer.parser->finish()) events.push_back(std::move(event));
  } else if (!delta.text.empty()) {
    events.push_back({OutputEvent::kContent, std::string(delta.text)});
  }
  for (const OutputEvent& event : events) {
    if (event.kind == OutputEvent::kReasoning && !include_reasoning_) continue;
    keep(answer, event);
    if (stream_) writer_->event(answer, event, totals_, out_);
  }
  if (delta.finished) {
    answer.finished = true;
    answer.reason = delta.reason;
    answer.stop_text = delta.stop_text;
    answer.stop_id = delta.stop_id;
    bool broken =
        delta.reason == FinishReason::kCancelled || delta.reason == FinishReason::kDeadline || delta.reason == FinishReason::kError;
    if (stream_ && !broken) writer_->end_answer(answer, totals_, out_);  // a broken one gets an error at the end
  }
  flush();
}

void AnswerExchange::end(int, const RequestUsage& usage, const Error* error) {
  std::lock_guard lock(mutex_);
  totals_.cached_tokens += usage.cached_tokens;
  generated_tokens_ += usage.generated_tokens;
  if (error && !error_) error_ = *error;
  if (--parts_left_ > 0 && !error) return;
  if (!started_) return;  // start() goes on from here
  if (parts_left_ > 0) submitted_->cancel();
  close();
}

ApiError AnswerExchange::ending_error(const Error& error) const {
  ApiError answer = api_error(error);
  if (error.kind != ErrorKind::kCancelled) return answer;
  bool late = EngineClock::now() >= deadline_;
  for (const Answer& each : answers_) late |= each.reason == FinishReason::kDeadline;
  answer.code = late ? "timeout" : "abort";
  answer.type = late ? "timeout_error" : "server_error";
  answer.status = late ? 504 : 503;
  return answer;
}

// All parts are over, or one failed.
void AnswerExchange::close() {
  if (closed_) return;
  for (const Answer& answer : answers_) {
    if (error_ || !answer.finished) continue;
    if (answer.reason == FinishReason::kCancelled) error_ = Error{ErrorKind::kCancelled, "the request was cancelled"};
    if (answer.reason == FinishReason::kDeadline) error_ = Error{ErrorKind::kCancelled, "the request took longer than its time limit"};
    if (answer.reason == FinishReason::kError)
      error_ = Error{ErrorKind::kDevice, "the model failed on this request; send it again or tell the operator"};
  }
  if (error_) return close_with(ending_error(*error_));
  closed_ = true;
  if (discard_)
    for (Answer& answer : answers_) answer.reason = FinishReason::kLength;
  log(answers_.empty() ? "stop" : openai_finish_reason(answers_.front()));
  if (submitted_->gone) return;
  if (!stream_) return responder_->respond({.body = writer_->body(answers_, totals_)});
  if (discard_)
    for (const Answer& answer : answers_) writer_->end_answer(answer, totals_, out_);
  writer_->end(answers_, totals_, out_);
  flush();
  responder_->finish();
}

void AnswerExchange::close_with(ApiError error) {
  closed_ = true;
  log(error.code.empty() ? error.type : error.code);
  if (error.status == 500) log_error(fmt::format("a request to {} failed: {}", model_, error.message));
  if (submitted_->gone) return;
  if (!begun_) return responder_->respond(shape_(error));
  writer_->fail(error, totals_, out_);
  flush();
  responder_->finish();
}

void AnswerExchange::flush() {
  if (!begun_ || out_.empty()) return;
  responder_->send(std::move(out_));
  out_.clear();
}

void AnswerExchange::log(const std::string& finish) {
  responder_->set_access_fields({.model = model_,
                                 .prompt_tokens = totals_.prompt_tokens,
                                 .cached_tokens = totals_.cached_tokens,
                                 .generated_tokens = std::max(totals_.completion_tokens, discard_ ? 0 : generated_tokens_),
                                 .ttft_s = ttft_s_,
                                 .finish = finish});
}

}  // namespace

const char* openai_finish_reason(const Answer& answer) {
  if (answer.reason == FinishReason::kLength || answer.reason == FinishReason::kContext) return "length";
  for (const ToolCallAnswer& call : answer.calls)
    if (call.complete) return "tool_calls";
  return "stop";
}

void reject(HttpResponder& responder, const ApiError& error, ErrorShape shape) {
  responder.set_access_fields({.finish = error.code.empty() ? error.type : error.code});
  responder.respond(shape(error));
}

void run_answers(const ApiContextPtr& context, const std::shared_ptr<HttpResponder>& responder, const HttpRequest& http, AnswerPlan plan,
                 std::unique_ptr<AnswerWriter> writer, ErrorShape shape) {
  auto exchange = std::make_shared<AnswerExchange>(context, responder, http, plan, std::move(writer), shape);
  std::vector<uint64_t> handles;
  for (size_t part = 0; part < plan.requests.size(); part++) {
    auto listener = std::make_shared<PartListener>(exchange, static_cast<int>(part));
    auto handle = context->engine.submit(std::move(plan.requests[part]), std::move(listener));
    if (!handle.ok()) return exchange->start(std::move(handles), &handle.error());
    handles.push_back(*handle);
  }
  exchange->start(std::move(handles), nullptr);
}

HttpHandler answer_handler(ApiContextPtr context, ErrorShape shape, PrepareAnswer prepare) {
  return [context = std::move(context), shape, prepare = std::move(prepare)](std::shared_ptr<HttpResponder> responder, HttpRequest http) {
    auto body = parse_body(http);
    if (!body.ok()) return reject(*responder, api_error(body.error()), shape);
    std::string model;
    if (auto error = read_model_name(*context, *body, &model)) return reject(*responder, *error, shape);
    auto prepared = prepare(context, http, *body, model);
    if (!prepared.ok()) return reject(*responder, api_error(prepared.error()), shape);
    prepared->plan.model = model;
    run_answers(context, responder, http, std::move(prepared->plan), std::move(prepared->writer), shape);
  };
}

}  // namespace dg::api
