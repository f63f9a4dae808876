// POST /v1/completions: plain text or token ids, continued. OpenAI's fields, with the old form of logprobs, and vLLM's
// additions. Every prompt is an engine request of its own; choices are numbered prompt by prompt.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "base/json.h"
#include "server/api/chat_writer.h"
#include "server/api/generation_fields.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's
constexpr size_t kMaxAnswers = 1024;       // prompts * n

struct CompletionPrompt {
  std::vector<int32_t> ids;
  std::string text;  // with echo
};

struct CompletionShape {
  std::string id, model;
  int64_t created_s = 0;
  bool logprobs = false, echo = false, token_ids = false, prompt_logprobs = false, skip_special = true;
  StreamOptions stream;
  std::vector<CompletionPrompt> prompts;
  size_t answers = 0;
};

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

class CompletionWriter : public AnswerWriter {
 public:
  CompletionWriter(ApiContextPtr context, CompletionShape shape)
      : context_(std::move(context)), shape_(std::move(shape)), choices_(shape_.answers), prompt_logprobs_(shape_.prompts.size()) {
    head_ = fmt::format(R"({{"id":{},"object":"text_completion","created":{},"model":{},"choices":[)", json_string(shape_.id),
                        shape_.created_s, json_string(shape_.model));
  }

  void begin(const AnswerTotals&, std::string&) override {}

  void prompt_logprobs(int part, std::span<const TokenInfo> tokens) override {
    size_t at = static_cast<size_t>(part);
    if (shape_.prompt_logprobs) prompt_logprobs_[at] = prompt_logprobs_json(context_->tokenizer, tokens);
    if (!shape_.echo || !shape_.logprobs) return;
    // The prompt's tokens come before those of every answer to it.
    size_t answers = shape_.answers / shape_.prompts.size();
    for (size_t i = 0; i < answers; i++)
      for (const TokenInfo& token : tokens) append(choices_[at * answers + i], token);
  }

  void tokens(const Answer& answer, std::span<const TokenInfo> tokens) override {
    if (!shape_.logprobs) return;
    for (const TokenInfo& token : tokens) append(choices_[static_cast<size_t>(answer.choice)], token);
  }

  void event(const Answer& answer, const OutputEvent& event, const AnswerTotals& totals, std::string& out) override {
    chunk(answer, event.text, false, totals, out);
  }

  void end_answer(const Answer& answer, const AnswerTotals& totals, std::string& out) override { chunk(answer, "", true, totals, out); }

  void end(std::span<const Answer>, const AnswerTotals& totals, std::string& out) override {
    if (shape_.stream.include_usage) out += fmt::format("data: {}],\"usage\":{}}}\n\n", head_, openai_usage(totals));
    append_sse(out, "[DONE]");
  }

  void fail(const ApiError& error, const AnswerTotals&, std::string& out) override {
    append_sse(out, openai_error_json(error));
    append_sse(out, "[DONE]");
  }

  std::string body(std::span<const Answer> answers, const AnswerTotals& totals) override {
    std::string out = head_;
    for (const Answer& answer : answers) {
      if (answer.choice > 0) out += ',';
      choice(answer, answer.content, true, out);
    }
    out += "],\"usage\":" + openai_usage(totals) + "}";
    return out;
  }

 private:
  // The old form of logprobs is four parallel lists.
  struct Choice {
    std::string tokens, values, top, offsets;
    size_t offset = 0;  // characters of text before the next token
    size_t ids_written = 0;
    bool echoed = false;
  };

  void append(Choice& choice, const TokenInfo& token) const {
    std::string text = shown_token(context_->tokenizer.token_bytes(token.id));
    const char* comma = choice.tokens.empty() ? "" : ",";
    choice.tokens += comma;
    append_json_string(choice.tokens, text);
    choice.offsets += fmt::format("{}{}", comma, choice.offset);
    if (!(shape_.skip_special && context_->tokenizer.is_special(token.id))) choice.offset += count_characters(text);
    choice.values += comma;
    choice.top += comma;
    if (std::isnan(token.logprob)) {  // nothing stands before the first token of a prompt
      choice.values += "null";
      choice.top += "null";
      return;
    }
    append_json_float(choice.values, token.logprob);
    choice.top += '{';
    std::vector<std::string> seen;
    auto add = [&](int32_t id, float logprob) {
      std::string name = shown_token(context_->tokenizer.token_bytes(id));
      if (std::find(seen.begin(), seen.end(), name) != seen.end()) return;
      if (!seen.empty()) choice.top += ',';
      append_json_string(choice.top, name);
      choice.top += ':';
      append_json_float(choice.top, logprob);
      seen.push_back(std::move(name));
    };
    for (const TokenLogprob& top : token.top) add(top.id, top.logprob);
    add(token.id, token.logprob);
    choice.top += '}';
  }

  // {"index", "text", "logprobs", "finish_reason", ...}
  void choice(const Answer& answer, std::string_view text, bool last, std::string& out) {
    Choice& state = choices_[static_cast<size_t>(answer.choice)];
    out += fmt::format(R"({{"index":{},"text":)", answer.choice);
    bool echo = shape_.echo && !state.echoed;
    if (echo) append_json_string(out, shape_.prompts[static_cast<size_t>(answer.part)].text + std::string(text));
    else append_json_string(out, text);
    out += ",\"logprobs\":";
    if (shape_.logprobs) {
      out += fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})", state.tokens, state.values,
                         state.top, state.offsets);
      for (std::string* list : {&state.tokens, &state.values, &state.top, &state.offsets}) list->clear();
    } else {
      out += "null";
    }
    if (shape_.token_ids) {
      out += ",\"token_ids\":";
      append_json_ids(out, std::span(answer.ids).subspan(state.ids_written));
      state.ids_written = answer.ids.size();
      if (!state.echoed) {
        out += ",\"prompt_token_ids\":";
        append_json_ids(out, shape_.prompts[static_cast<size_t>(answer.part)].ids);
      }
    }
    const std::string& prompt_logprobs = prompt_logprobs_[static_cast<size_t>(answer.part)];
    if (!prompt_logprobs.empty()) out += ",\"prompt_logprobs\":" + prompt_logprobs;
    state.echoed = true;
    if (last) {
      out += fmt::format(R"(,"finish_reason":"{}",)", openai_finish_reason(answer));
      append_stop_reason(out, answer, context_->options.stop_ids);
    } else {
      out += ",\"finish_reason\":null";
    }
    out += '}';
  }

  void chunk(const Answer& answer, std::string_view text, bool last, const AnswerTotals& totals, std::string& out) {
    out += "data: ";
    out += head_;
    choice(answer, text, last, out);
    out += ']';
    if (shape_.stream.continuous_usage) out += ",\"usage\":" + openai_usage(totals);
    else if (shape_.stream.include_usage) out += ",\"usage\":null";
    out += "}\n\n";
  }

  const ApiContextPtr context_;
  const CompletionShape shape_;
  std::string head_;
  std::vector<Choice> choices_;
  std::vector<std::string> prompt_logprobs_;
};

Result<CompletionPrompt> read_prompt(const ApiContext& context, const Json& json, const std::string& where, bool add_special, bool echo) {
  CompletionPrompt prompt;
  if (json.is_string()) {
    const auto& text = json.get_ref<const std::string&>();
    prompt.ids = context.tokenizer.encode(text, {.add_special = add_special});
    if (echo) prompt.text = text;
  } else {
    DG_ASSIGN(prompt.ids, read_ids(json, where, context.config.vocab));
    if (echo) prompt.text = context.tokenizer.decode(prompt.ids, true);
  }
  if (prompt.ids.empty()) return input_error(where + ": expected at least one token, found an empty prompt");
  return prompt;
}

// A string, a list of strings, a list of token ids, or a list of lists of token ids.
Result<std::vector<CompletionPrompt>> read_prompts(const ApiContext& context, const Json& json, bool add_special, bool echo) {
  std::vector<CompletionPrompt> prompts;
  bool one = json.is_string() || (json.is_array() && !json.empty() && json[0].is_number());
  if (one) {
    DG_ASSIGN(CompletionPrompt prompt, read_prompt(context, json, "prompt", add_special, echo));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (!json.is_array() || json.empty())
    return wrong_field("prompt", "a string, a list of strings, a list of token ids or a list of such lists", &json);
  if (json.size() > static_cast<size_t>(context.options.max_prompts))
    return input_error(fmt::format("prompt: expected at most {} prompts, found {}", context.options.max_prompts, json.size()));
  for (size_t i = 0; i < json.size(); i++) {
    std::string where = fmt::format("prompt[{}]", i);
    if (!json[i].is_string() && !json[i].is_array()) return wrong_field(where, "a string or a list of token ids", &json[i]);
    DG_ASSIGN(CompletionPrompt prompt, read_prompt(context, json[i], where, add_special, echo));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

Result<PreparedAnswer> prepare_completion(const ApiContextPtr& context, const HttpRequest& http, const Json& body,
                                          const std::string& model) {
  Fields fields(body);
  AnswerPlan plan;
  EngineRequest request;
  read_generation(fields, *context, http, &request);
  plan.stream = fields.flag("stream").value_or(false);
  CompletionShape shape{.id = "cmpl-" + request.id, .model = model, .created_s = static_cast<int64_t>(std::time(nullptr))};
  shape.stream = read_stream_options(fields);
  shape.echo = fields.flag("echo").value_or(false);
  shape.token_ids = plan.keep_ids = fields.flag("return_token_ids").value_or(false);
  if (auto suffix = fields.text("suffix"); suffix && !suffix->empty())
    fields.fail(input_error("suffix: this model continues text and cannot fill a gap; leave suffix out"));
  if (auto count = fields.integer("logprobs", 0, context->options.max_logprobs)) {
    shape.logprobs = true;
    request.logprobs = static_cast<int>(*count);
  }
  shape.skip_special = request.skip_special;
  shape.prompt_logprobs = request.prompt_logprobs >= 0;
  if (shape.prompt_logprobs && plan.stream) fields.fail(input_error("prompt_logprobs: they are not streamed; leave stream out"));
  if (shape.echo && shape.logprobs) request.prompt_logprobs = std::max(request.prompt_logprobs, request.logprobs);
  request.max_tokens = fields.integer("max_tokens", shape.echo ? 0 : 1, INT32_MAX).value_or(kDefaultMaxTokens);
  if (request.max_tokens == 0) {  // echo alone: the engine always generates, and one token is the least
    request.max_tokens = 1;
    plan.discard_output = true;
  }
  bool add_special = fields.flag("add_special_tokens").value_or(true);
  auto structure = read_structure(fields);
  if (structure) set_grammar(fields, *context, structure->spec, structure->field, &request);
  const Json* prompt = fields.find("prompt");
  if (!prompt) fields.wrong("prompt", "a string, a list of strings or token ids");
  if (!fields.ok()) return fields.error();

  DG_ASSIGN(shape.prompts, read_prompts(*context, *prompt, add_special, shape.echo));
  shape.answers = shape.prompts.size() * static_cast<size_t>(request.n);
  if (shape.answers > kMaxAnswers)
    return input_error(
        fmt::format("n: expected at most {} answers in all, found {} prompts times {}", kMaxAnswers, shape.prompts.size(), request.n));
  for (CompletionPrompt& each : shape.prompts) {
    EngineRequest& part = plan.requests.emplace_back(request);
    if (shape.token_ids) part.prompt = each.ids;
    else part.prompt = std::move(each.ids);
  }
  return PreparedAnswer{std::move(plan), std::make_unique<CompletionWriter>(context, std::move(shape))};
}

}  // namespace

void add_completions_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/v1/completions", Role::kUser, answer_handler(context, openai_error, prepare_completion)});
}

}  // namespace dg::api
