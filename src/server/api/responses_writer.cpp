#include "server/api/responses_writer.h"

#include <fmt/core.h>

#include "server/api/json_writer.h"

namespace dg::api {
namespace {

// The only content part of a message or of reasoning.
std::string part_json(bool reasoning, std::string_view text) {
  if (reasoning) return fmt::format(R"({{"type":"reasoning_text","text":{}}})", json_string(text));
  return fmt::format(R"({{"type":"output_text","text":{},"annotations":[],"logprobs":[]}})", json_string(text));
}

bool ran_out(const Answer& answer) { return std::string_view(openai_finish_reason(answer)) == "length"; }

}  // namespace

void ResponsesWriter::send(std::string_view type, std::string_view members, std::string& out) {
  append_sse(out, type, fmt::format(R"({{"type":"{}","sequence_number":{},{}}})", type, sequence_++, members));
}

ResponsesWriter::Item ResponsesWriter::new_item(Kind kind, std::string_view name) const {
  Item item{.kind = kind, .name = std::string(name)};
  item.id = (kind == kReasoning ? "rs_" : kind == kMessage ? "msg_" : "fc_") + random_hex(32);
  if (kind == kCall) item.call_id = "call_" + random_hex(24);
  return item;
}

std::string ResponsesWriter::item_json(const Item& item, std::string_view status) const {
  bool empty = status == "in_progress";  // the text comes as deltas
  switch (item.kind) {
    case kReasoning:
      return fmt::format(R"({{"id":"{}","type":"reasoning","status":"{}","summary":[],"content":[{}]}})", item.id, status,
                         empty ? "" : part_json(true, item.text));
    case kMessage:
      return fmt::format(R"({{"id":"{}","type":"message","status":"{}","role":"assistant","content":[{}]}})", item.id, status,
                         empty ? "" : part_json(false, item.text));
    default:
      return fmt::format(R"({{"id":"{}","type":"function_call","status":"{}","call_id":"{}","name":{},"arguments":{}}})", item.id, status,
                         item.call_id, json_string(item.name), json_string(empty ? "" : item.text));
  }
}

std::string ResponsesWriter::response_json(std::string_view status, std::string_view output, const AnswerTotals* totals,
                                           std::string_view error, bool incomplete) const {
  std::string usage = "null";
  if (totals) {
    usage = fmt::format(R"({{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{}}},"output_tokens":{},)"
                        R"("output_tokens_details":{{"reasoning_tokens":{}}},"total_tokens":{}}})",
                        totals->prompt_tokens, totals->cached_tokens, totals->completion_tokens, totals->reasoning_tokens,
                        totals->prompt_tokens + totals->completion_tokens);
  }
  return fmt::format(R"({{"id":{},"object":"response","created_at":{},"status":"{}","background":false,"error":{},"incomplete_details":{},)"
                     R"("output":[{}],"previous_response_id":null,"store":false,"truncation":"disabled",{},"usage":{}}})",
                     json_string(shape_.id), shape_.created_s, status, error, incomplete ? R"({"reason":"max_output_tokens"})" : "null",
                     output, shape_.settings, usage);
}

void ResponsesWriter::begin(const AnswerTotals&, std::string& out) {
  std::string response = "\"response\":" + response_json("in_progress", "", nullptr, "null", false);
  send("response.created", response, out);
  send("response.in_progress", response, out);
}

void ResponsesWriter::open(Kind kind, std::string_view name, std::string& out) {
  item_ = new_item(kind, name);
  send("response.output_item.added", fmt::format(R"("output_index":{},"item":{})", index_, item_json(item_, "in_progress")), out);
  if (kind == kCall) return;
  send("response.content_part.added",
       fmt::format(R"("item_id":"{}","output_index":{},"content_index":0,"part":{})", item_.id, index_, part_json(kind == kReasoning, "")),
       out);
}

void ResponsesWriter::close(bool complete, std::string& out) {
  if (item_.kind == kNone) return;
  std::string place = fmt::format(R"("item_id":"{}","output_index":{})", item_.id, index_);
  std::string text = json_string(item_.text);
  if (item_.kind == kCall) {
    send("response.function_call_arguments.done", fmt::format(R"({},"name":{},"arguments":{})", place, json_string(item_.name), text), out);
  } else {
    bool reasoning = item_.kind == kReasoning;
    place += ",\"content_index\":0";
    if (reasoning) send("response.reasoning_text.done", fmt::format(R"({},"text":{})", place, text), out);
    else send("response.output_text.done", fmt::format(R"({},"text":{},"logprobs":[])", place, text), out);
    send("response.content_part.done", fmt::format(R"({},"part":{})", place, part_json(reasoning, item_.text)), out);
  }
  std::string done = item_json(item_, complete ? "completed" : "incomplete");
  send("response.output_item.done", fmt::format(R"("output_index":{},"item":{})", index_, done), out);
  output_ += (output_.empty() ? "" : ",") + done;
  item_ = {};
  index_++;
}

void ResponsesWriter::delta(std::string_view type, std::string_view text, std::string& out) {
  item_.text += text;
  std::string members = fmt::format(R"("item_id":"{}","output_index":{},)", item_.id, index_);
  if (item_.kind != kCall) members += "\"content_index\":0,";
  members += "\"delta\":";
  append_json_string(members, text);
  if (item_.kind == kMessage) members += ",\"logprobs\":[]";
  send(type, members, out);
}

void ResponsesWriter::event(const Answer&, const OutputEvent& event, const AnswerTotals&, std::string& out) {
  auto be_in = [&](Kind kind) {
    if (item_.kind == kind) return;
    close(true, out);
    open(kind, "", out);
  };
  switch (event.kind) {
    case OutputEvent::kReasoning:
      be_in(kReasoning);
      delta("response.reasoning_text.delta", event.text, out);
      break;
    case OutputEvent::kContent:
      be_in(kMessage);
      delta("response.output_text.delta", event.text, out);
      break;
    case OutputEvent::kToolName:
      close(true, out);
      open(kCall, event.text, out);
      break;
    case OutputEvent::kToolArguments:
      if (item_.kind == kCall) delta("response.function_call_arguments.delta", event.text, out);
      break;
    case OutputEvent::kToolEnd: close(true, out); break;
  }
}

void ResponsesWriter::end_answer(const Answer& answer, const AnswerTotals&, std::string& out) { close(!ran_out(answer), out); }

void ResponsesWriter::end(std::span<const Answer> answers, const AnswerTotals& totals, std::string& out) {
  bool incomplete = ran_out(answers.front());
  const char* status = incomplete ? "incomplete" : "completed";
  send(fmt::format("response.{}", status), "\"response\":" + response_json(status, output_, &totals, "null", incomplete), out);
}

void ResponsesWriter::fail(const ApiError& error, const AnswerTotals& totals, std::string& out) {
  close(false, out);
  std::string problem = fmt::format(R"({{"code":{},"message":{}}})", json_string(error.code.empty() ? "server_error" : error.code),
                                    json_string(error.message));
  send("response.failed", "\"response\":" + response_json("failed", output_, &totals, problem, false), out);
}

std::string ResponsesWriter::body(std::span<const Answer> answers, const AnswerTotals& totals) {
  const Answer& answer = answers.front();
  bool incomplete = ran_out(answer);
  std::string output;
  auto add = [&](Kind kind, const std::string& name, const std::string& text, bool complete) {
    Item item = new_item(kind, name);
    item.text = text;
    output += (output.empty() ? "" : ",") + item_json(item, complete ? "completed" : "incomplete");
  };
  bool only_reasoning = answer.content.empty() && answer.calls.empty();
  if (!answer.reasoning.empty()) add(kReasoning, "", answer.reasoning, !(incomplete && only_reasoning));
  if (!answer.content.empty()) add(kMessage, "", answer.content, !(incomplete && answer.calls.empty()));
  for (const ToolCallAnswer& call : answer.calls) add(kCall, call.name, call.arguments, call.complete);
  return response_json(incomplete ? "incomplete" : "completed", output, &totals, "null", incomplete);
}

}  // namespace dg::api
