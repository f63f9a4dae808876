// What every endpoint needs, made once by Service, and the list of the endpoints.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/service.h"

namespace dg {

struct ApiContext {
  Engine& engine;
  const Tokenizer& tokenizer;
  const PromptEncoder* prompt;  // null: no chats
  GrammarCompiler& grammars;
  const ModelConfig& config;
  ServiceOptions options;

  int64_t created_s = 0;                           // Unix time of the start
  int32_t think_begin_id = -1, think_end_id = -1;  // -1: these marks are no single tokens
  std::vector<int32_t> chat_marks;                 // special tokens the output parser must see, with and without tools
  std::vector<int32_t> tool_marks;

  // What /health saw last; `steps` must move while there is work.
  struct Pulse {
    std::mutex mutex;
    bool working = false;
    uint64_t steps = 0;
    EngineClock::time_point since;
  };
  mutable Pulse pulse;

  int64_t max_model_len() const { return options.max_model_len > 0 ? options.max_model_len : engine.options().max_model_len; }
  bool serves(const std::string& name) const;
  const std::string& default_name() const;
};

using ApiContextPtr = std::shared_ptr<const ApiContext>;

namespace api {

void add_chat_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_completions_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_models_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_embeddings_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_messages_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_responses_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_tokenize_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_health_routes(const ApiContextPtr& context, std::vector<Route>& routes);
void add_admin_routes(const ApiContextPtr& context, std::function<std::string()> render_metrics, std::vector<Route>& routes);

}  // namespace api
}  // namespace dg
