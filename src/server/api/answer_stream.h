// One HTTP exchange over one or several engine requests: it submits them, receives their output, splits it into reasoning,
// content and tool calls, and has an endpoint's AnswerWriter put it in that endpoint's shape, streamed or whole.
//
// Ownership: the engine holds a listener per request, the listeners hold the exchange, the exchange holds the responder. The
// responder's callbacks hold only the engine and the handles, so nothing is cyclic and all goes when the engine lets go.
// The engine's output thread does the work; a mutex parts it from the handler's thread while that is still submitting.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "engine/request.h"
#include "server/api/api_context.h"
#include "server/api/request_fields.h"
#include "server/http.h"
#include "text/output_parser.h"

namespace dg::api {

struct ToolCallAnswer {
  std::string id, name, arguments;
  bool complete = false;  // the arguments are valid JSON
};

// One of the answers of an exchange: answer `index` of request `part`.
struct Answer {
  int choice = 0;  // its number in the response
  int part = 0;
  std::string content, reasoning;  // kept only when the plan says so, or the answer is not streamed
  std::vector<ToolCallAnswer> calls;
  int64_t tokens = 0, reasoning_tokens = 0;
  std::vector<int32_t> ids;  // kept with AnswerPlan::keep_ids
  bool finished = false;
  FinishReason reason = FinishReason::kStop;
  std::string stop_text;
  int32_t stop_id = -1;

  std::unique_ptr<OutputParser> parser;  // null: all text is content
  bool inside_reasoning = false;
};

struct AnswerTotals {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, reasoning_tokens = 0;
};

struct AnswerPlan {
  std::vector<EngineRequest> requests;
  bool stream = false;
  bool parse = false;  // chat: reasoning and tools as `parser` says
  OutputParserOptions parser;
  bool include_reasoning = true;  // false: reasoning is generated and dropped
  bool keep_text = false;         // in Answer, also while streaming
  bool keep_ids = false;
  bool discard_output = false;  // max_tokens 0: the engine's one token is not shown and not counted
  std::string model;            // for the access log
};

// The shape of one endpoint. Used by one thread at a time. Streams: every function appends whole events to `out`.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;
  virtual void begin(const AnswerTotals& totals, std::string& out) = 0;
  virtual void prompt_logprobs(int /*part*/, std::span<const TokenInfo> /*tokens*/) {}
  virtual void embedding(int /*part*/, std::span<const float> /*values*/) {}
  // The tokens of the events that follow (and of later ones: a token may come before its text). Without the stop id.
  virtual void tokens(const Answer& /*answer*/, std::span<const TokenInfo> /*tokens*/) {}
  virtual void event(const Answer& answer, const OutputEvent& event, const AnswerTotals& totals, std::string& out) = 0;
  virtual void end_answer(const Answer& answer, const AnswerTotals& totals, std::string& out) = 0;
  virtual void end(std::span<const Answer> answers, const AnswerTotals& totals, std::string& out) = 0;
  virtual void fail(const ApiError& error, const AnswerTotals& totals, std::string& out) = 0;  // ends the stream

  virtual std::string body(std::span<const Answer> answers, const AnswerTotals& totals) = 0;  // not streamed
};

// "stop", "length" or "tool_calls".
const char* openai_finish_reason(const Answer& answer);

using ErrorShape = HttpResponse (*)(const ApiError&);

// Answers with an error and tells the access log.
void reject(HttpResponder& responder, const ApiError& error, ErrorShape shape);

// Submits everything and streams or answers; an error of the engine is the answer.
void run_answers(const ApiContextPtr& context, const std::shared_ptr<HttpResponder>& responder, const HttpRequest& http, AnswerPlan plan,
                 std::unique_ptr<AnswerWriter> writer, ErrorShape shape);

// What a handler of a generating endpoint does: reads the body and the model's name, has `prepare` fill the plan and make
// the writer, runs them.
struct PreparedAnswer {
  AnswerPlan plan;
  std::unique_ptr<AnswerWriter> writer;
};
using PrepareAnswer =
    std::function<Result<PreparedAnswer>(const ApiContextPtr&, const HttpRequest&, const Json& body, const std::string& model)>;
HttpHandler answer_handler(ApiContextPtr context, ErrorShape shape, PrepareAnswer prepare);

}  // namespace dg::api
