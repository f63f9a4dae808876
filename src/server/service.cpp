#include "server/service.h"

#include <fmt/core.h>

#include <algorithm>
#include <condition_variable>
#include <ctime>
#include <mutex>

#include "base/check.h"
#include "server/api/api_context.h"

namespace dg {
namespace {

// Waits for the end of the request that warms the model up.
class WarmUpListener : public RequestListener {
 public:
  void on_delta(const OutputDelta& delta) override {
    std::lock_guard lock(mutex_);
    tokens_ += delta.tokens.size();
  }
  void on_end(const RequestUsage&, const Error* error) override {
    std::lock_guard lock(mutex_);
    if (error) error_ = *error;
    ended_ = true;
    changed_.notify_all();
  }
  bool wait(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [this] { return ended_; });
  }
  Result<void> outcome() {
    std::lock_guard lock(mutex_);
    if (error_) return *error_;
    if (tokens_ == 0) return Error{ErrorKind::kDevice, "warm-up: the model gave no token"};
    return {};
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Error> error_;
  size_t tokens_ = 0;
  bool ended_ = false;
};

void add_mark(const Tokenizer& tokenizer, const std::string& content, std::vector<int32_t>& marks) {
  auto id = tokenizer.id_of(content);
  if (id && tokenizer.is_special(*id)) marks.push_back(*id);
}

}  // namespace

bool ApiContext::serves(const std::string& name) const {
  return std::find(options.served_names.begin(), options.served_names.end(), name) != options.served_names.end();
}

const std::string& ApiContext::default_name() const { return options.served_names.front(); }

Service::Service(Engine& engine, const Tokenizer& tokenizer, const PromptEncoder* prompt, GrammarCompiler& grammars,
                 const ModelConfig& config, ServiceOptions options)
    : context_(new ApiContext{engine, tokenizer, prompt, grammars, config, std::move(options)}) {
  ApiContext& context = *context_;
  CHECK(!context.options.served_names.empty()) << "a service needs a name for its model";
  context.created_s = static_cast<int64_t>(std::time(nullptr));
  context.think_begin_id = tokenizer.id_of("<think>").value_or(-1);
  context.think_end_id = tokenizer.id_of("</think>").value_or(-1);
  for (const char* mark : {"<think>", "</think>"}) add_mark(tokenizer, mark, context.chat_marks);
  context.tool_marks = context.chat_marks;
  for (const std::string& mark : tool_format_marks(context.options.tool_format)) add_mark(tokenizer, mark, context.tool_marks);
}

Service::~Service() = default;

std::vector<Route> Service::api_routes() const {
  std::vector<Route> routes;
  api::add_chat_routes(context_, routes);
  api::add_completions_routes(context_, routes);
  api::add_models_routes(context_, routes);
  api::add_embeddings_routes(context_, routes);
  api::add_messages_routes(context_, routes);
  api::add_responses_routes(context_, routes);
  api::add_tokenize_routes(context_, routes);
  api::add_health_routes(context_, routes);
  return routes;
}

std::vector<Route> Service::admin_routes(std::function<std::string()> render_metrics) const {
  std::vector<Route> routes;
  api::add_admin_routes(context_, std::move(render_metrics), routes);
  api::add_health_routes(context_, routes);
  return routes;
}

Result<void> Service::warm_up(std::chrono::milliseconds limit) {
  EngineRequest request;
  request.id = "warm-up";
  request.prompt = context_->tokenizer.encode("Hello");
  if (request.prompt.empty()) request.prompt.push_back(0);
  request.max_tokens = 1;
  request.deadline = EngineClock::now() + limit;
  auto listener = std::make_shared<WarmUpListener>();
  DG_ASSIGN(uint64_t handle, context_->engine.submit(std::move(request), listener));
  if (!listener->wait(limit)) {
    context_->engine.cancel(handle);
    return Error{ErrorKind::kDevice,
                 fmt::format("warm-up: no token within {} ms; the model may be too slow for this machine", limit.count())};
  }
  return listener->outcome();
}

}  // namespace dg
