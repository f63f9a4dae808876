// POST /v1/embeddings: the hidden state after the final norm, of the last token or the mean of all, with length 1 unless
// "normalize" is false. One engine request per input.
#include <fmt/core.h>

#include <cmath>

#include "base/json.h"
#include "server/api/answer_stream.h"
#include "server/api/generation_fields.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

struct EmbeddingShape {
  std::string model;
  bool base64 = false, normalise = true;
  size_t inputs = 0;
};

class EmbeddingWriter : public AnswerWriter {
 public:
  explicit EmbeddingWriter(EmbeddingShape shape) : shape_(std::move(shape)), values_(shape_.inputs) {}

  void embedding(int part, std::span<const float> values) override {
    std::vector<float>& out = values_[static_cast<size_t>(part)];
    out.assign(values.begin(), values.end());
    if (!shape_.normalise) return;
    double squares = 0;
    for (float value : out) squares += static_cast<double>(value) * value;
    if (!(squares > 0) || !std::isfinite(squares)) return;
    for (float& value : out) value = static_cast<float>(value / std::sqrt(squares));
  }

  std::string body(std::span<const Answer>, const AnswerTotals& totals) override {
    std::string out = "{\"object\":\"list\",\"data\":[";
    for (size_t i = 0; i < values_.size(); i++) {
      out += fmt::format(R"({}{{"object":"embedding","index":{},"embedding":)", i > 0 ? "," : "", i);
      if (shape_.base64) {
        out += '"' + base64(values_[i]) + '"';
      } else {
        out += '[';
        for (size_t k = 0; k < values_[i].size(); k++) {
          if (k > 0) out += ',';
          append_json_float(out, values_[i][k]);
        }
        out += ']';
      }
      out += '}';
    }
    out += fmt::format(R"(],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})", json_string(shape_.model),
                       totals.prompt_tokens, totals.prompt_tokens);
    return out;
  }

  // Nothing is generated and nothing is streamed.
  void begin(const AnswerTotals&, std::string&) override {}
  void event(const Answer&, const OutputEvent&, const AnswerTotals&, std::string&) override {}
  void end_answer(const Answer&, const AnswerTotals&, std::string&) override {}
  void end(std::span<const Answer>, const AnswerTotals&, std::string&) override {}
  void fail(const ApiError&, const AnswerTotals&, std::string&) override {}

 private:
  const EmbeddingShape shape_;
  std::vector<std::vector<float>> values_;
};

Result<std::vector<int32_t>> read_input(const ApiContext& context, const Json& json, const std::string& where, bool add_special) {
  std::vector<int32_t> ids;
  if (json.is_string()) {
    ids = context.tokenizer.encode(json.get_ref<const std::string&>(), {.add_special = add_special});
  } else if (json.is_array()) {
    DG_ASSIGN(ids, read_ids(json, where, context.config.vocab));
  } else {
    return wrong_field(where, "a string or a list of token ids", &json);
  }
  if (ids.empty()) return input_error(where + ": expected at least one token, found an empty text");
  return ids;
}

Result<PreparedAnswer> prepare_embeddings(const ApiContextPtr& context, const HttpRequest& http, const Json& body,
                                          const std::string& model) {
  Fields fields(body);
  EngineRequest request;
  read_basic_generation(fields, *context, http, &request);
  request.priority = static_cast<int>(fields.integer("priority", -1'000'000, 1'000'000).value_or(0));
  request.pooling = fields.choice("pooling", {"last", "mean"}) == "mean" ? Pooling::kMean : Pooling::kLast;
  EmbeddingShape shape{.model = model};
  shape.base64 = fields.choice("encoding_format", {"float", "base64"}) == "base64";
  shape.normalise = fields.flag("normalize").value_or(true);
  auto dimensions = fields.integer("dimensions", 1, INT32_MAX);
  if (dimensions && *dimensions != context->config.hidden)
    fields.wrong("dimensions", fmt::format("{}, the model's size (it cannot be shortened)", context->config.hidden));
  bool add_special = fields.flag("add_special_tokens").value_or(true);
  const Json* input = fields.find("input");
  if (!input) fields.wrong("input", "a string, a list of strings or token ids");
  if (!fields.ok()) return fields.error();

  AnswerPlan plan;
  auto add = [&](std::vector<int32_t> ids) { plan.requests.emplace_back(request).prompt = std::move(ids); };
  if (input->is_string() || (input->is_array() && !input->empty() && (*input)[0].is_number())) {
    DG_ASSIGN(auto ids, read_input(*context, *input, "input", add_special));
    add(std::move(ids));
  } else {
    size_t limit = static_cast<size_t>(context->options.max_prompts);
    if (!input->is_array() || input->empty())
      return wrong_field("input", "a string, a list of strings, a list of token ids or a list of such lists", input);
    if (input->size() > limit) return input_error(fmt::format("input: expected at most {} inputs, found {}", limit, input->size()));
    for (size_t i = 0; i < input->size(); i++) {
      DG_ASSIGN(auto ids, read_input(*context, (*input)[i], fmt::format("input[{}]", i), add_special));
      add(std::move(ids));
    }
  }
  shape.inputs = plan.requests.size();
  return PreparedAnswer{std::move(plan), std::make_unique<EmbeddingWriter>(std::move(shape))};
}

}  // namespace

void add_embeddings_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/v1/embeddings", Role::kUser, answer_handler(context, openai_error, prepare_embeddings)});
}

}  // namespace dg::api
