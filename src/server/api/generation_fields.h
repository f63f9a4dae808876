// The fields that say how to generate, shared by the endpoints: sampling, stops, limits, structured output. Defaults: the
// request over generation_config.json over OpenAI's.
#pragma once
#include <optional>
#include <string>

#include "engine/request.h"
#include "server/api/api_context.h"
#include "server/api/request_fields.h"
#include "text/grammar.h"

namespace dg::api {

// The name to answer with, or the 404 for a model that is not served here.
std::optional<ApiError> read_model_name(const ApiContext& context, const Json& body, std::string* name);

// `request_id` of the body, else of the HTTP request.
std::string read_request_id(Fields& fields, const HttpRequest& http);

// Everything of OpenAI's and vLLM's requests that is the same for chats and completions: id, tenant, sampling, n, stops,
// min_tokens, special tokens, deadline. `max_tokens` and logprobs differ and are left to the caller.
void read_generation(Fields& fields, const ApiContext& context, const HttpRequest& http, EngineRequest* request);

// The subset that Anthropic's and OpenAI's newer endpoints share: id, tenant, temperature, top_p, top_k, seed and the deadline.
void read_basic_generation(Fields& fields, const ApiContext& context, const HttpRequest& http, EngineRequest* request);

// Texts that end an answer, one or a list; empty ones are left out.
void read_stop_texts(Fields& fields, std::string_view name, EngineRequest* request);

// Which structure the answer must have, from response_format, structured_outputs or guided_*; at most one of them.
struct Structure {
  GrammarSpec spec;
  std::string field;  // where it stands in the request
};
std::optional<Structure> read_structure(Fields& fields);
// {"type": "text" | "json_object" | "json_schema", ...}; `flat`: name and schema stand beside the type (Responses API).
std::optional<Structure> read_response_format(Fields& fields, std::string_view name, bool flat);

// Compiles; errors go to `fields` and name the field.
void set_grammar(Fields& fields, const ApiContext& context, const GrammarSpec& spec, const std::string& field, EngineRequest* request);

}  // namespace dg::api
