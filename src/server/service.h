// Service: the endpoints of one model. It translates HTTP requests to engine requests and the engine's output to the shapes
// of OpenAI, Anthropic and vLLM; it never touches a sequence. One file per endpoint stands in api/.
//
// Handlers run on the HTTP server's workers and may render, tokenise and compile grammars. Output is formatted on the
// engine's output thread. Everything named in the constructor outlives the HTTP servers that the routes are given to.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "model/config.h"
#include "server/http.h"
#include "text/chat.h"
#include "text/grammar.h"
#include "text/output_parser.h"
#include "text/tokenizer.h"

namespace dg {

struct ServiceOptions {
  std::string model_path;                 // shown as "root" by /v1/models
  std::string version;                    // of the program, for /version
  std::vector<std::string> served_names;  // what "model" may name; the first is shown when the client names none
  GenerationConfig generation;            // defaults of requests
  std::vector<int32_t> stop_ids;          // end of an answer, unless ignore_eos
  ToolFormat tool_format = ToolFormat::kNone;
  bool parse_reasoning = true;
  std::optional<bool> thinking;                  // for chats that do not choose; unset: the model's default
  int64_t max_model_len = 0;                     // shown to clients; 0: the engine's
  std::chrono::milliseconds request_timeout{0};  // longest a request may take; 0: no limit
  int max_n = 64;                                // answers per prompt
  int max_logprobs = 20;
  int max_prompts = 1024;                 // prompts or inputs in one request
  std::chrono::seconds stall_limit{120};  // /health fails when a running batch makes no step for so long
};

struct ApiContext;  // api/api_context.h

class Service {
 public:
  // `prompt` may be null: the chat endpoints answer 400 and say so.
  Service(Engine& engine, const Tokenizer& tokenizer, const PromptEncoder* prompt, GrammarCompiler& grammars, const ModelConfig& config,
          ServiceOptions options);
  ~Service();

  std::vector<Route> api_routes() const;
  // For the listener of operators: /metrics (`render_metrics`: text format 0.0.4), /debug and /admin, and the health routes.
  std::vector<Route> admin_routes(std::function<std::string()> render_metrics) const;

  // Generates one token, so that /ready turns 200: the model really answers.
  Result<void> warm_up(std::chrono::milliseconds limit);

 private:
  std::shared_ptr<ApiContext> context_;
};

}  // namespace dg
