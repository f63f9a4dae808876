#include "server/api/generation_fields.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "base/json.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

// Every answer has a matcher of its own: 9 bytes for each byte of the stop texts.
constexpr size_t kMaxStops = 32, kMaxStopBytes = 4096;
constexpr size_t kMaxChoices = 4096, kMaxIdBytes = 128, kMaxSaltBytes = 1024;

bool is_sane_id(std::string_view id) {
  auto allowed = [](unsigned char c) { return (c < 0x80 && std::isalnum(c)) || c == '.' || c == '_' || c == ':' || c == '-'; };
  return !id.empty() && id.size() <= kMaxIdBytes && std::all_of(id.begin(), id.end(), allowed);
}

void read_seed(Fields& fields, SamplingParams& sampling) {
  const Json* seed = fields.find("seed");
  if (!seed) {
    uint64_t drawn = 0;
    std::string hex = random_hex(15);  // fits a signed integer, so that it can be reported and sent again
    std::from_chars(hex.data(), hex.data() + hex.size(), drawn, 16);
    sampling.seed = drawn;
  } else if (seed->is_number_unsigned()) {
    sampling.seed = seed->get<uint64_t>();
  } else if (auto number = fields.integer("seed", INT64_MIN, INT64_MAX)) {
    sampling.seed = static_cast<uint64_t>(*number);
  }
}

void read_logit_bias(Fields& fields, const ApiContext& context, SamplingParams& sampling) {
  const Json* bias = fields.find("logit_bias");
  if (!bias) return;
  if (!bias->is_object()) return fields.wrong("logit_bias", "an object from token ids to numbers");
  for (const auto& [key, value] : bias->items()) {
    int32_t id = -1;
    auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= context.config.vocab)
      return fields.fail(input_error(fmt::format("logit_bias: expected token ids between 0 and {} as keys, found {}",
                                                 context.config.vocab - 1, shown_value(Json(key)))));
    double number = value.is_number() ? value.get<double>() : 1000;
    if (!(number >= -100 && number <= 100)) return fields.fail(wrong_field("logit_bias." + key, "a number between -100 and 100", &value));
    sampling.logit_bias.emplace_back(id, static_cast<float>(number));
  }
}

void read_stops(Fields& fields, const ApiContext& context, EngineRequest* request) {
  read_stop_texts(fields, "stop", request);
  if (fields.flag("ignore_eos").value_or(false)) request->stop_ids.clear();
  if (auto ids = fields.ids("stop_token_ids", context.config.vocab)) {
    for (int32_t id : *ids)
      if (std::find(request->stop_ids.begin(), request->stop_ids.end(), id) == request->stop_ids.end()) request->stop_ids.push_back(id);
  }
  request->include_stop_text = fields.flag("include_stop_str_in_output").value_or(false);
}

// A schema as an object or as JSON text.
std::string read_schema(Fields& fields, std::string_view name) {
  const Json* schema = fields.find(name);
  if (!schema) {
    fields.wrong(name, "a JSON schema");
    return "";
  }
  if (schema->is_string()) return schema->get<std::string>();
  if (schema->is_object() || schema->is_boolean()) return schema->dump();
  fields.wrong(name, "a JSON schema: an object, or its text");
  return "";
}

// One of the vLLM kinds; `prefix` is "guided_" or "".
void read_structure_kinds(Fields& fields, const std::string& prefix, std::vector<Structure>& found) {
  auto add = [&](const std::string& name, GrammarSpec spec) { found.push_back({std::move(spec), fields.at(name)}); };
  std::string json = prefix + "json", regex = prefix + "regex", choice = prefix + "choice", grammar = prefix + "grammar";
  std::string object = prefix + "json_object";
  if (fields.has(json)) add(json, {.kind = GrammarKind::kJsonSchema, .text = read_schema(fields, json)});
  if (auto text = fields.text(regex)) add(regex, {.kind = GrammarKind::kRegex, .text = std::move(*text)});
  if (auto text = fields.text(grammar)) add(grammar, {.kind = GrammarKind::kEbnf, .text = std::move(*text)});
  if (auto choices = fields.texts(choice, kMaxChoices, false)) {
    if (choices->empty()) fields.wrong(choice, "at least one string");
    add(choice, {.kind = GrammarKind::kChoice, .choices = std::move(*choices)});
  }
  if (fields.flag(object).value_or(false)) add(object, {.kind = GrammarKind::kJsonObject});
}

}  // namespace

std::optional<ApiError> read_model_name(const ApiContext& context, const Json& body, std::string* name) {
  auto model = body.find("model");
  *name = context.default_name();
  if (model == body.end() || model->is_null()) return {};
  if (!model->is_string()) return api_error(wrong_field("model", "a string", &*model));
  const auto& asked = model->get_ref<const std::string&>();
  if (asked.empty()) return {};
  if (context.serves(asked)) {
    *name = asked;
    return {};
  }
  std::string served;
  for (const std::string& each : context.options.served_names) served += (served.empty() ? "" : ", ") + each;
  ApiError error = api_error(wrong_field("model", "a model that is served here (" + served + ")", &*model));
  error.status = 404;
  error.type = "not_found_error";
  error.code = "model_not_found";
  return error;
}

void read_stop_texts(Fields& fields, std::string_view name, EngineRequest* request) {
  auto stops = fields.texts(name, kMaxStops, true);
  if (!stops) return;
  size_t bytes = 0;
  for (std::string& stop : *stops) {
    bytes += stop.size();
    if (!stop.empty()) request->stop.push_back(std::move(stop));
  }
  if (bytes > kMaxStopBytes)
    fields.fail(input_error(fmt::format("{}: expected at most {} bytes in all, found {}", fields.at(name), kMaxStopBytes, bytes)));
}

std::string read_request_id(Fields& fields, const HttpRequest& http) {
  auto id = fields.text("request_id");
  if (id && !is_sane_id(*id)) fields.wrong("request_id", fmt::format("1 to {} letters, digits or any of . _ : -", kMaxIdBytes));
  if (id) return std::move(*id);
  return http.id.empty() ? "req-" + random_hex(16) : http.id;
}

void read_basic_generation(Fields& fields, const ApiContext& context, const HttpRequest& http, EngineRequest* request) {
  const GenerationConfig& model = context.options.generation;
  request->id = read_request_id(fields, http);
  request->tenant = http.tenant;
  SamplingParams& sampling = request->sampling;
  bool greedy = model.do_sample == false;
  sampling.temperature = fields.number("temperature", {.min = 0, .max = 2}).value_or(greedy ? 0 : model.temperature.value_or(1));
  sampling.top_p = fields.number("top_p", {.min = 0, .max = 1, .above_min = true}).value_or(model.top_p.value_or(1));
  sampling.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX).value_or(model.top_k.value_or(0)));
  sampling.min_p = model.min_p.value_or(0);
  sampling.repetition_penalty = model.repetition_penalty.value_or(1);
  read_seed(fields, sampling);
  request->stop_ids = context.options.stop_ids;

  using std::chrono::milliseconds;
  milliseconds limit = context.options.request_timeout;
  if (auto seconds = fields.number("timeout", {.min = 0, .max = 1e6, .above_min = true})) {
    milliseconds asked(std::max<int64_t>(1, static_cast<int64_t>(*seconds * 1000)));
    limit = limit.count() > 0 ? std::min(limit, asked) : asked;
  }
  if (limit.count() > 0) {
    auto start = http.received == EngineClock::time_point() ? EngineClock::now() : http.received;
    request->deadline = start + limit;
  }
}

void read_generation(Fields& fields, const ApiContext& context, const HttpRequest& http, EngineRequest* request) {
  read_basic_generation(fields, context, http, request);
  const GenerationConfig& model = context.options.generation;
  SamplingParams& sampling = request->sampling;
  sampling.min_p = fields.number("min_p", {.min = 0, .max = 1}).value_or(model.min_p.value_or(0));
  sampling.typical_p = fields.number("typical_p", {.min = 0, .max = 1, .above_min = true}).value_or(1);
  sampling.repetition_penalty =
      fields.number("repetition_penalty", {.min = 0, .max = 100, .above_min = true}).value_or(model.repetition_penalty.value_or(1));
  sampling.presence_penalty = fields.number("presence_penalty", {.min = -2, .max = 2}).value_or(0);
  sampling.frequency_penalty = fields.number("frequency_penalty", {.min = -2, .max = 2}).value_or(0);
  read_logit_bias(fields, context, sampling);

  request->n = static_cast<int>(fields.integer("n", 1, context.options.max_n).value_or(1));
  if (auto best_of = fields.integer("best_of", 1, INT32_MAX); best_of && *best_of != request->n)
    fields.wrong("best_of", fmt::format("the value of n, {} (the server returns every answer that it generates)", request->n));
  read_stops(fields, context, request);
  request->min_tokens = fields.integer("min_tokens", 0, INT32_MAX).value_or(0);
  request->skip_special = fields.flag("skip_special_tokens").value_or(true);
  request->priority = static_cast<int>(fields.integer("priority", -1'000'000, 1'000'000).value_or(0));
  if (auto salt = fields.text("cache_salt")) {
    if (salt->empty() || salt->size() > kMaxSaltBytes) fields.wrong("cache_salt", fmt::format("a string of 1 to {} bytes", kMaxSaltBytes));
    request->cache_salt = std::move(*salt);
  }
  if (auto count = fields.integer("prompt_logprobs", -1, context.options.max_logprobs)) request->prompt_logprobs = static_cast<int>(*count);
}

std::optional<Structure> read_response_format(Fields& fields, std::string_view name, bool flat) {
  if (!fields.has(name)) return {};
  Fields format = fields.object(name);
  auto type = format.choice("type", {"text", "json_object", "json_schema"});
  if (!type && format.ok()) format.wrong("type", "\"text\", \"json_object\" or \"json_schema\"");
  if (!type || *type == "text") return {};
  if (*type == "json_object") return Structure{{.kind = GrammarKind::kJsonObject}, fields.at(name)};
  Fields schema = flat ? format : format.object("json_schema");
  if (!flat && !format.has("json_schema")) format.wrong("json_schema", "an object with name and schema");
  return Structure{{.kind = GrammarKind::kJsonSchema, .text = read_schema(schema, "schema")}, schema.at("schema")};
}

std::optional<Structure> read_structure(Fields& fields) {
  std::vector<Structure> found;
  if (auto format = read_response_format(fields, "response_format", false)) found.push_back(std::move(*format));
  if (fields.has("structured_outputs")) {
    Fields kinds = fields.object("structured_outputs");
    if (kinds.has("structural_tag"))
      kinds.fail(input_error(
          "structured_outputs.structural_tag: this server does not support structural tags; use json, regex, choice or grammar"));
    size_t before = found.size();
    read_structure_kinds(kinds, "", found);
    if (found.size() == before && kinds.ok()) fields.wrong("structured_outputs", "one of json, json_object, regex, choice or grammar");
  }
  read_structure_kinds(fields, "guided_", found);
  if (found.size() > 1)
    fields.fail(input_error(fmt::format("{}: {} was given too; an answer can obey one of them", found[1].field, found[0].field)));
  if (found.empty()) return {};
  return std::move(found.front());
}

void set_grammar(Fields& fields, const ApiContext& context, const GrammarSpec& spec, const std::string& field, EngineRequest* request) {
  if (!fields.ok()) return;
  auto grammar = context.grammars.compile(spec);
  if (grammar.ok()) {
    request->grammar = std::move(grammar).value();
    return;
  }
  Error error = grammar.error();
  if (!error.message.starts_with(field)) error.message = field + ": " + error.message;
  fields.fail(std::move(error));
}

}  // namespace dg::api
