#include "server/api/chat_writer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "server/api/json_writer.h"

namespace dg::api {

StreamOptions read_stream_options(Fields& fields) {
  StreamOptions out;
  if (!fields.has("stream_options")) return out;
  Fields options = fields.object("stream_options");
  out.include_usage = options.flag("include_usage").value_or(false);
  out.continuous_usage = options.flag("continuous_usage_stats").value_or(false);
  return out;
}

std::string openai_usage(const AnswerTotals& totals) {
  return fmt::format(R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}},)"
                     R"("completion_tokens_details":{{"reasoning_tokens":{}}}}})",
                     totals.prompt_tokens, totals.completion_tokens, totals.prompt_tokens + totals.completion_tokens, totals.cached_tokens,
                     totals.reasoning_tokens);
}

std::string prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const TokenInfo> tokens) {
  std::string out = "[";
  auto entry = [&](int32_t id, float logprob, size_t rank, bool first) {
    out += fmt::format(R"({}"{}":{{"logprob":)", first ? "" : ",", id);
    append_json_float(out, logprob);
    out += fmt::format(R"(,"rank":{},"decoded_token":)", rank > 0 ? std::to_string(rank) : "null");
    append_json_string(out, tokenizer.token_bytes(id));
    out += '}';
  };
  for (size_t i = 0; i < tokens.size(); i++) {
    if (i > 0) out += ',';
    const TokenInfo& token = tokens[i];
    if (std::isnan(token.logprob)) {
      out += "null";
      continue;
    }
    out += '{';
    auto at = std::find_if(token.top.begin(), token.top.end(), [&](const TokenLogprob& top) { return top.id == token.id; });
    entry(token.id, token.logprob, at == token.top.end() ? 0 : static_cast<size_t>(at - token.top.begin()) + 1, true);
    for (size_t k = 0; k < token.top.size(); k++)
      if (token.top[k].id != token.id) entry(token.top[k].id, token.top[k].logprob, k + 1, false);
    out += '}';
  }
  out += ']';
  return out;
}

void append_stop_reason(std::string& out, const Answer& answer, const std::vector<int32_t>& usual_ids) {
  out += "\"stop_reason\":";
  if (!answer.stop_text.empty()) append_json_string(out, answer.stop_text);
  else if (answer.stop_id >= 0 && std::find(usual_ids.begin(), usual_ids.end(), answer.stop_id) == usual_ids.end())
    out += std::to_string(answer.stop_id);
  else out += "null";
}

ChatWriter::ChatWriter(ApiContextPtr context, ChatShape shape)
    : context_(std::move(context)), shape_(std::move(shape)), choices_(static_cast<size_t>(shape_.answers)) {
  head_ = fmt::format(R"({{"id":{},"object":"chat.completion.chunk","created":{},"model":{},"choices":[)", json_string(shape_.id),
                      shape_.created_s, json_string(shape_.model));
}

// Nothing: the first chunk comes with the first token, so that clients who time it measure the model.
void ChatWriter::begin(const AnswerTotals&, std::string&) {}

void ChatWriter::prompt_logprobs(int, std::span<const TokenInfo> tokens) {
  prompt_logprobs_ = prompt_logprobs_json(context_->tokenizer, tokens);
}

void ChatWriter::append_token(std::string& out, int32_t id, float logprob) const {
  std::string_view bytes = context_->tokenizer.token_bytes(id);
  out += "{\"token\":";
  append_json_string(out, bytes);
  out += ",\"logprob\":";
  append_json_float(out, logprob);
  out += ",\"bytes\":[";
  for (size_t i = 0; i < bytes.size(); i++) {
    if (i > 0) out += ',';
    out += std::to_string(static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

void ChatWriter::tokens(const Answer& answer, std::span<const TokenInfo> tokens) {
  if (!shape_.logprobs) return;
  std::string& out = choices_[static_cast<size_t>(answer.choice)].logprobs;
  for (const TokenInfo& token : tokens) {
    if (!out.empty()) out += ',';
    append_token(out, token.id, token.logprob);
    out += ",\"top_logprobs\":[";
    for (size_t i = 0; i < token.top.size(); i++) {
      if (i > 0) out += ',';
      append_token(out, token.top[i].id, token.top[i].logprob);
      out += '}';
    }
    out += "]}";
  }
}

void ChatWriter::chunk(const Answer& answer, std::string_view delta, bool last, const AnswerTotals& totals, std::string& out,
                       std::string_view more) {
  Choice& choice = choices_[static_cast<size_t>(answer.choice)];
  out += "data: ";
  out += head_;
  out += "{\"index\":";
  out += std::to_string(answer.choice);
  out += ",\"delta\":";
  out += delta;
  out += ",\"logprobs\":";
  if (choice.logprobs.empty()) {
    out += "null";
  } else {
    out += "{\"content\":[";
    out += choice.logprobs;
    out += "]}";
    choice.logprobs.clear();
  }
  if (shape_.token_ids) {
    out += ",\"token_ids\":";
    append_json_ids(out, std::span(answer.ids).subspan(choice.ids_written));
    choice.ids_written = answer.ids.size();
  }
  if (last) {
    out += fmt::format(R"(,"finish_reason":"{}",)", openai_finish_reason(answer));
    append_stop_reason(out, answer, context_->options.stop_ids);
  } else {
    out += ",\"finish_reason\":null";
  }
  out += "}]";
  out += more;
  if (shape_.stream.continuous_usage) {
    out += ",\"usage\":";
    out += openai_usage(totals);
  } else if (shape_.stream.include_usage) {
    out += ",\"usage\":null";
  }
  out += "}\n\n";
}

void ChatWriter::begin_choice(const Answer& answer, const AnswerTotals& totals, std::string& out) {
  Choice& choice = choices_[static_cast<size_t>(answer.choice)];
  if (choice.begun) return;
  choice.begun = true;
  // Logprobs and ids belong to the chunk with the text.
  std::string logprobs = std::move(choice.logprobs);
  choice.logprobs.clear();
  Answer nothing;
  nothing.choice = answer.choice;
  std::string prompt_ids;
  if (shape_.token_ids) {
    prompt_ids = ",\"prompt_token_ids\":";
    append_json_ids(prompt_ids, shape_.prompt_ids);
  }
  chunk(nothing, R"({"role":"assistant","content":""})", false, totals, out, prompt_ids);
  choice.logprobs = std::move(logprobs);
}

void ChatWriter::event(const Answer& answer, const OutputEvent& event, const AnswerTotals& totals, std::string& out) {
  begin_choice(answer, totals, out);
  delta_.clear();
  switch (event.kind) {
    case OutputEvent::kReasoning: {
      // Both spellings: DeepSeek, SGLang and llama.cpp say reasoning_content, vLLM says reasoning.
      delta_ += "{\"reasoning_content\":";
      size_t start = delta_.size();
      append_json_string(delta_, event.text);
      std::string text = delta_.substr(start);
      delta_ += ",\"reasoning\":";
      delta_ += text;
      break;
    }
    case OutputEvent::kContent:
      delta_ += "{\"content\":";
      append_json_string(delta_, event.text);
      break;
    case OutputEvent::kToolName:
      delta_ += fmt::format(R"({{"tool_calls":[{{"index":{},"id":"{}","type":"function","function":{{"name":)", event.call,
                            "call_" + random_hex(24));
      append_json_string(delta_, event.text);
      delta_ += R"(,"arguments":""}}])";
      break;
    case OutputEvent::kToolArguments:
      delta_ += fmt::format(R"({{"tool_calls":[{{"index":{},"function":{{"arguments":)", event.call);
      append_json_string(delta_, event.text);
      delta_ += "}}]";
      break;
    case OutputEvent::kToolEnd: return;
  }
  delta_ += '}';
  chunk(answer, delta_, false, totals, out);
}

void ChatWriter::end_answer(const Answer& answer, const AnswerTotals& totals, std::string& out) {
  begin_choice(answer, totals, out);
  chunk(answer, "{}", true, totals, out);
}

void ChatWriter::end(std::span<const Answer>, const AnswerTotals& totals, std::string& out) {
  if (shape_.stream.include_usage) out += fmt::format("data: {}],\"usage\":{}}}\n\n", head_, openai_usage(totals));
  append_sse(out, "[DONE]");
}

void ChatWriter::fail(const ApiError& error, const AnswerTotals&, std::string& out) {
  append_sse(out, openai_error_json(error));
  append_sse(out, "[DONE]");
}

std::string ChatWriter::message(const Answer& answer) const {
  std::string out = R"({"role":"assistant","content":)";
  if (answer.content.empty() && !answer.calls.empty()) out += "null";
  else append_json_string(out, answer.content);
  out += ",\"refusal\":null";
  if (!answer.reasoning.empty()) {
    std::string reasoning = json_string(answer.reasoning);
    out += ",\"reasoning_content\":" + reasoning + ",\"reasoning\":" + reasoning;
  }
  for (size_t i = 0; i < answer.calls.size(); i++) {
    const ToolCallAnswer& call = answer.calls[i];
    out += i == 0 ? ",\"tool_calls\":[" : ",";
    out += fmt::format(R"({{"id":"{}","type":"function","function":{{"name":{},"arguments":{}}}}})", "call_" + random_hex(24),
                       json_string(call.name), json_string(call.arguments));
  }
  out += answer.calls.empty() ? "}" : "]}";
  return out;
}

std::string ChatWriter::body(std::span<const Answer> answers, const AnswerTotals& totals) {
  std::string out = fmt::format(R"({{"id":{},"object":"chat.completion","created":{},"model":{},"choices":[)", json_string(shape_.id),
                                shape_.created_s, json_string(shape_.model));
  for (const Answer& answer : answers) {
    if (answer.choice > 0) out += ',';
    out += fmt::format(R"({{"index":{},"message":{},"logprobs":)", answer.choice, message(answer));
    if (shape_.logprobs) out += "{\"content\":[" + choices_[static_cast<size_t>(answer.choice)].logprobs + "]}";
    else out += "null";
    out += fmt::format(R"(,"finish_reason":"{}",)", openai_finish_reason(answer));
    append_stop_reason(out, answer, context_->options.stop_ids);
    if (shape_.token_ids) {
      out += ",\"token_ids\":";
      append_json_ids(out, answer.ids);
    }
    out += '}';
  }
  out += "],\"usage\":" + openai_usage(totals);
  if (prompt_logprobs_ != "null") out += ",\"prompt_logprobs\":" + prompt_logprobs_;
  if (shape_.token_ids) {
    out += ",\"prompt_token_ids\":";
    append_json_ids(out, shape_.prompt_ids);
  }
  out += '}';
  return out;
}

}  // namespace dg::api
