#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "engine/engine_impl.h"

namespace dg {
namespace {

SchedulerOptions scheduler_options(const EngineOptions& o, const EngineParts& parts) {
  return {.max_model_len = o.max_model_len,
          .max_step_tokens = std::max(o.max_step_tokens, o.max_running),
          .max_running = o.max_running,
          .max_prefill_chunk = o.max_prefill_chunk,
          .max_logit_rows = parts.max_logit_rows,
          .prefix_cache = o.prefix_cache,
          .deterministic = o.deterministic};
}

double seconds(EngineClock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(Executor& executor, const Tokenizer& tokenizer, const EngineOptions& options,
                                               EngineObserver* observer) {
  const ExecutorOptions& limits = executor.options();
  int64_t draft = options.speculation == SpeculationMethod::kNone ? 0 : options.draft_tokens;
  if (options.speculation == SpeculationMethod::kMtp && executor.model().mtp_modules() == 0)
    return input_error("--spec-method mtp: this checkpoint has no MTP module (num_nextn_predict_layers); use ngram or none");
  if (options.max_running > limits.max_step_sequences || options.max_step_tokens > limits.max_step_tokens)
    return input_error(fmt::format("the executor takes {} sequences and {} tokens in a step, the engine asks for {} and {}",
                                   limits.max_step_sequences, limits.max_step_tokens, options.max_running, options.max_step_tokens));
  if (options.max_running * (1 + draft) > limits.max_step_tokens)
    return input_error(
        fmt::format("--max-num-batched-tokens {}: expected at least {}: one row for each of --max-num-seqs {} sequences and {} drafts",
                    limits.max_step_tokens, options.max_running * (1 + draft), options.max_running, draft));
  EngineParts parts{.allocator = &executor.kv().allocator(),
                    .block_tokens = limits.block_tokens,
                    .vocab = executor.model().config().vocab,
                    .max_logit_rows = std::min(limits.max_logit_rows, std::max(limits.max_decode_rows, limits.max_step_sequences)),
                    .tokenizer = &tokenizer};
  auto runner = std::make_unique<ModelStepRunner>(executor, options);
  parts.runner = runner.get();
  return std::unique_ptr<Engine>(std::make_unique<EngineImpl>(parts, options, observer, std::move(runner)));
}

std::unique_ptr<Engine> Engine::create(const EngineParts& parts, const EngineOptions& options, EngineObserver* observer) {
  return std::make_unique<EngineImpl>(parts, options, observer, nullptr);
}

EngineImpl::EngineImpl(const EngineParts& parts, const EngineOptions& options, EngineObserver* observer, std::unique_ptr<StepRunner> owned)
    : parts_(parts),
      options_(options),
      observer_(observer),
      owned_runner_(std::move(owned)),
      scheduler_(*parts.allocator, parts.block_tokens, scheduler_options(options, parts)),
      controller_(options.adaptive_speculation),
      output_([this](uint64_t handle, int index) { send({.kind = Command::kStopAnswer, .handle = handle, .index = index}); }) {
  update_stats();
  thread_ = std::thread([this] { loop(); });
}

EngineImpl::~EngineImpl() {
  draining_ = true;
  {
    std::lock_guard lock(command_mutex_);
    stop_ = true;
  }
  command_ready_.notify_all();
  thread_.join();
}

// --- calls of other threads

Result<uint64_t> EngineImpl::submit(EngineRequest request, std::shared_ptr<RequestListener> listener) {
  DG_TRY(scheduler_.check(request));
  for (int32_t id : request.prompt)
    if (id < 0 || id >= parts_.vocab)
      return input_error(fmt::format("token id {} of the prompt is not in the model's vocabulary of {} tokens", id, parts_.vocab));
  if (request.prompt_logprobs > 0 || request.logprobs > 0)
    if (std::max(request.prompt_logprobs, request.logprobs) > parts_.vocab)
      return input_error("logprobs: more than the vocabulary has tokens");
  if (failed_) return *failure();
  if (draining_) return resource_error("the server is shutting down and takes no new requests");
  if (queued_ >= options_.max_waiting)
    return resource_error(
        fmt::format("the queue is full: {} requests wait (--max-queue {}); try again later", queued_.load(), options_.max_waiting));
  auto state = std::make_unique<RequestState>();
  uint64_t handle = next_handle_++;
  state->handle = handle;
  state->usage.times.arrived = EngineClock::now();
  state->output = std::make_shared<OutputState>(handle, request, *parts_.tokenizer, std::move(listener));
  state->request = std::move(request);
  queued_++;
  live_++;
  send({.kind = Command::kAdd, .handle = handle, .request = std::move(state)});
  return handle;
}

void EngineImpl::send(Command command) {
  {
    std::lock_guard lock(command_mutex_);
    commands_.push_back(std::move(command));
  }
  command_ready_.notify_one();
}

void EngineImpl::cancel(uint64_t handle) { send({.kind = Command::kCancel, .handle = handle, .reason = "cancelled by the client"}); }

void EngineImpl::pause(uint64_t handle, bool paused) { send({.kind = paused ? Command::kPause : Command::kResume, .handle = handle}); }

int64_t EngineImpl::cancel_id(const std::string& request_id) {
  std::vector<uint64_t> handles;
  {
    std::lock_guard lock(state_mutex_);
    scheduler_.for_each([&](RequestState& r) {
      if (request_id.empty() || r.request.id == request_id) handles.push_back(r.handle);
    });
  }
  {
    std::lock_guard queue(command_mutex_);  // those that wait in the command queue
    for (const Command& c : commands_)
      if (c.kind == Command::kAdd && (request_id.empty() || c.request->request.id == request_id)) handles.push_back(c.handle);
  }
  for (uint64_t handle : handles) send({.kind = Command::kCancel, .handle = handle, .reason = "aborted by the operator"});
  return static_cast<int64_t>(handles.size());
}

void EngineImpl::drain() { draining_ = true; }

void EngineImpl::reset_prefix_cache() { send({.kind = Command::kResetCache}); }

bool EngineImpl::wait_idle(std::chrono::milliseconds limit) {
  std::unique_lock lock(idle_mutex_);
  if (!idle_.wait_for(lock, limit, [&] { return live_ == 0; })) return false;
  lock.unlock();
  output_.flush();
  return true;
}

EngineStats EngineImpl::stats() const {
  std::lock_guard lock(stats_mutex_);
  EngineStats stats = shown_;
  stats.waiting = std::max<int64_t>(stats.waiting, queued_);
  stats.draining = draining_;
  return stats;
}

std::vector<RequestStatus> EngineImpl::requests() const {
  std::vector<RequestStatus> list;
  auto now = EngineClock::now();
  std::scoped_lock lock(state_mutex_, command_mutex_);
  for (const Command& c : commands_)
    if (c.kind == Command::kAdd)
      list.push_back({.handle = c.handle,
                      .id = c.request->request.id,
                      .tenant = c.request->request.tenant,
                      .stage = "queued",
                      .age_s = seconds(now - c.request->usage.times.arrived),
                      .prompt_tokens = c.request->usage.prompt_tokens,
                      .priority = c.request->request.priority});
  scheduler_.for_each([&](RequestState& r) {
    RequestStatus status{.handle = r.handle,
                         .id = r.request.id,
                         .tenant = r.request.tenant,
                         .age_s = seconds(now - r.usage.times.arrived),
                         .prompt_tokens = r.usage.prompt_tokens,
                         .priority = r.request.priority};
    bool running = false, decoding = false;
    for (const auto& s : r.sequences) {
      status.generated_tokens += s->generated();
      status.blocks += static_cast<int64_t>(s->blocks.blocks().size());
      running |= s->state == Sequence::State::kRunning;
      decoding |= s->state == Sequence::State::kRunning && s->computed >= s->prompt_tokens;
    }
    status.stage = r.paused ? "paused" : decoding ? "decode" : running ? "prefill" : "waiting";
    list.push_back(std::move(status));
  });
  return list;
}

// --- engine thread

void EngineImpl::loop() {
  std::unique_lock state(state_mutex_);
  bool checked = false;
  EngineClock::time_point done{};
  while (true) {
    take_commands();
    {
      std::lock_guard lock(command_mutex_);
      if (stop_) break;
    }
    auto now = EngineClock::now();
    expire(now);
    scheduler_.plan(plan_);
    if (plan_.items.empty()) {
      done = {};
      publish();
      update_stats();
      if (!checked && scheduler_.requests() == 0) scheduler_.check_integrity(), checked = true;
      state.unlock();
      {
        std::unique_lock lock(command_mutex_);
        auto wake = [&] { return stop_ || !commands_.empty(); };
        if (scheduler_.next_deadline() == EngineClock::time_point::max()) command_ready_.wait(lock, wake);
        else command_ready_.wait_until(lock, scheduler_.next_deadline(), wake);
      }
      state.lock();
      continue;
    }
    checked = false;
    note_scheduled(now);
    int64_t generating = 0;
    for (const StepItem& item : plan_.items) generating += item.wants_token;
    plan_.draft = options_.speculation != SpeculationMethod::kNone && controller_.should_draft(generating);
    publish();  // what the step before gave: the output thread's work beside this one
    auto start = EngineClock::now();
    plan_.follows = done != EngineClock::time_point{};
    const EngineClock::time_point since = plan_.follows ? done : start;
    state.unlock();
    parts_.runner->run(plan_, results_);
    state.lock();
    done = EngineClock::now();
    commit(done, seconds(done - start), seconds(done - since));
    update_stats();
  }
  scheduler_.for_each([&](RequestState& r) {
    end(r, FinishReason::kCancelled, Error{ErrorKind::kCancelled, "the server stops"}, EngineClock::now());
  });
  publish();
}

void EngineImpl::take_commands() {
  {
    std::lock_guard lock(command_mutex_);
    taken_.clear();
    std::swap(taken_, commands_);
  }
  for (Command& command : taken_) apply(command);
  taken_.clear();
}

void EngineImpl::apply(Command& command) {
  if (command.kind == Command::kAdd) {
    const uint64_t handle = command.request->handle;
    scheduler_.add(std::move(command.request));
    if (failed_) end(*scheduler_.find(handle), FinishReason::kError, failure(), EngineClock::now());
    return;
  }
  if (command.kind == Command::kResetCache) return scheduler_.drop_cache();
  RequestState* request = scheduler_.find(command.handle);
  if (!request) return;
  auto now = EngineClock::now();
  switch (command.kind) {
    case Command::kCancel: end(*request, FinishReason::kCancelled, Error{ErrorKind::kCancelled, command.reason}, now); break;
    case Command::kPause: request->paused = true; break;
    case Command::kResume: request->paused = false; break;
    case Command::kStopAnswer: {
      Sequence& sequence = *request->sequences[static_cast<size_t>(command.index)];
      if (sequence.state != Sequence::State::kFinished) {
        sequence.reason = FinishReason::kStop;
        if (scheduler_.finish(sequence)) end(*request, FinishReason::kStop, {}, now);
      }
      break;
    }
    default: break;
  }
}

void EngineImpl::expire(EngineClock::time_point now) {
  scheduler_.expired(now, expired_);
  for (RequestState* r : expired_) {
    for (auto& sequence : r->sequences)
      if (sequence->state != Sequence::State::kFinished)
        batch_.items.push_back({.at = r->output.get(), .index = sequence->index, .finished = true, .reason = FinishReason::kDeadline});
    end(*r, FinishReason::kDeadline,
        Error{ErrorKind::kCancelled, fmt::format("the request's deadline passed after {:.3g} s", seconds(now - r->usage.times.arrived))},
        now);
  }
}

void EngineImpl::note_scheduled(EngineClock::time_point now) {
  for (const StepItem& item : plan_.items) {
    RequestState& r = item.sequence->request;
    if (r.admitted) continue;
    r.admitted = true;
    r.usage.times.scheduled = now;
    queued_--;
    stats_.cached_tokens += static_cast<uint64_t>(r.usage.cached_tokens);
  }
}

void EngineImpl::commit(EngineClock::time_point now, double step_s, double period) {
  stats_.steps++;
  stats_.last_step_s = step_s;
  if (results_.error) {
    // The step as a whole failed: its requests are answered, the others go on. With the device, all requests have failed.
    log_error(fmt::format("step failed: {}", results_.error->message));
    if (results_.error->kind == ErrorKind::kDevice) return fail_all(*results_.error, now);
    expired_.clear();
    for (const StepItem& item : plan_.items)
      if (std::find(expired_.begin(), expired_.end(), &item.sequence->request) == expired_.end())
        expired_.push_back(&item.sequence->request);
    for (RequestState* r : expired_) end(*r, FinishReason::kError, results_.error, now);
    return;
  }
  int64_t tokens = 0, generating = 0;
  bool drafted = plan_.draft;
  for (size_t i = 0; i < plan_.items.size(); i++) {
    const StepItem& item = plan_.items[i];
    ItemResult& result = results_.items[i];
    Sequence& s = *item.sequence;
    // An answer with n > 1 that shares a request with one that failed in this very step is gone by now.
    tokens += result.token_count;
    generating += item.wants_token;
    drafted |= item.drafts > 0;
    if (item.drafts > 0) {
      stats_.drafts++;
      stats_.draft_tokens += static_cast<uint64_t>(item.drafts);
      stats_.accepted_tokens += static_cast<uint64_t>(result.accepted);
      if (stats_.accepted_per_position.size() < static_cast<size_t>(item.drafts))
        stats_.accepted_per_position.resize(static_cast<size_t>(item.drafts));
      for (int k = 0; k < result.accepted; k++) stats_.accepted_per_position[static_cast<size_t>(k)]++;
      s.request.usage.draft_tokens += item.drafts;
      s.request.usage.accepted_tokens += result.accepted;
    }
    if (item.prompt_logits) commit_prompt_logprobs(item, result);
  }
  // Requests end only after all of their items were looked at.
  for (size_t i = 0; i < plan_.items.size(); i++) commit_tokens(plan_.items[i], results_.items[i], now);
  expired_.clear();
  for (const StepItem& item : plan_.items)
    if (item.sequence->request.unfinished == 0 || item.sequence->reason == FinishReason::kError)
      if (std::find(expired_.begin(), expired_.end(), &item.sequence->request) == expired_.end())
        expired_.push_back(&item.sequence->request);
  for (RequestState* r : expired_) {
    FinishReason reason = r->sequences[0]->reason;
    std::optional<Error> error;
    for (auto& sequence : r->sequences)
      if (sequence->reason == FinishReason::kError)
        reason = FinishReason::kError,
        error = Error{ErrorKind::kDevice,
                      fmt::format("the model's logits after token {} are not numbers (NaN or -inf): the weights are damaged; "
                                  "check them with `dougong verify`",
                                  sequence->ids.size())};
    end(*r, reason, error, now);
  }
  stats_.prompt_tokens += static_cast<uint64_t>(plan_.prefill_tokens);
  stats_.generated_tokens += static_cast<uint64_t>(tokens);
  if (plan_.prefill_tokens == 0) controller_.record(generating, tokens, step_s, drafted);
  stats_.speculating = options_.speculation != SpeculationMethod::kNone && controller_.drafting(std::max<int64_t>(1, generating));
  if (observer_) observer_->on_step(plan_.prefill_tokens, plan_.decode_tokens, period, results_.waited_s);
}

void EngineImpl::fail_all(const Error& error, EngineClock::time_point now) {
  {
    std::lock_guard lock(stats_mutex_);
    failure_ = error;
  }
  failed_ = true;
  expired_.clear();
  scheduler_.for_each([&](RequestState& r) { expired_.push_back(&r); });
  for (RequestState* r : expired_) end(*r, FinishReason::kError, error, now);
}

std::optional<Error> EngineImpl::failure() const {
  std::lock_guard lock(stats_mutex_);
  return failure_;
}

void EngineImpl::commit_prompt_logprobs(const StepItem& item, ItemResult& result) {
  Sequence& s = *item.sequence;
  // The whole prompt is reported at once; after a preemption it starts again.
  if (item.begin == 0) s.prompt_infos.assign(1, TokenInfo{.id = s.ids[0], .logprob = std::nanf("")});
  for (TokenInfo& info : result.prompt_logprobs) s.prompt_infos.push_back(std::move(info));
  if (static_cast<int64_t>(s.prompt_infos.size()) == s.prompt_tokens && !s.prompt_reported) {
    s.prompt_reported = true;
    batch_.extras.push_back({.at = s.request.output.get(), .prompt_logprobs = std::move(s.prompt_infos), .embedding = {}});
  }
}

void EngineImpl::commit_tokens(const StepItem& item, ItemResult& result, EngineClock::time_point now) {
  Sequence& s = *item.sequence;
  RequestState& r = s.request;
  int64_t computed = item.begin + item.rows - item.drafts + result.accepted;
  for (int t = 0; t < result.token_count; t++) {
    SampleOutput& token = result.tokens[static_cast<size_t>(t)];
    s.ids.push_back(token.id);
    OutputItem out{.at = r.output.get(), .index = s.index, .id = token.id};
    if (r.request.logprobs >= 0) {
      out.extra = static_cast<int32_t>(batch_.infos.size());
      TokenInfo info{.id = token.id, .logprob = token.logprob};
      for (const auto& [id, logprob] : token.top) info.top.push_back({id, logprob});
      batch_.infos.push_back(std::move(info));
    }
    if (t + 1 == result.token_count && result.end) {
      out.finished = true;
      out.reason = *result.end;
      out.stop_id = result.stop_id;
    }
    batch_.items.push_back(out);
  }
  // A token's row is not in the cache before the step that uses it.
  scheduler_.advance(s, std::min<int64_t>(computed, static_cast<int64_t>(s.ids.size())));
  if (result.token_count > 0) {
    bool first = s.last_token == EngineClock::time_point{};
    auto since = first ? r.usage.times.arrived : s.last_token;
    if (r.usage.times.first_token == EngineClock::time_point{}) r.usage.times.first_token = now;
    if (observer_)
      for (int t = 0; t < result.token_count; t++)
        observer_->on_token(first && t == 0, first ? (t == 0 ? seconds(now - since) : 0) : seconds(now - since) / result.token_count);
    s.last_token = now;
    r.usage.generated_tokens += result.token_count;
  }
  s.drafts.swap(result.drafts);
  if (result.failed) {
    s.reason = FinishReason::kError;
    return;
  }
  if (result.end) {
    s.reason = *result.end;
    scheduler_.finish(s);
  } else if (r.request.pooling != Pooling::kNone && s.computed >= s.prompt_tokens) {
    if (r.request.pooling == Pooling::kMean)
      for (float& x : s.pooled) x /= static_cast<float>(s.prompt_tokens);
    batch_.extras.push_back({.at = r.output.get(), .prompt_logprobs = {}, .embedding = std::move(s.pooled)});
    scheduler_.finish(s);
  }
}

void EngineImpl::end(RequestState& request, FinishReason reason, std::optional<Error> error, EngineClock::time_point now) {
  request.usage.times.finished = now;
  if (!request.admitted) queued_--;
  std::unique_ptr<RequestState> gone = scheduler_.remove(request);
  if (observer_) observer_->on_request_end(gone->request, gone->usage, reason);
  batch_.ends.push_back({.state = std::move(gone->output), .usage = gone->usage, .error = std::move(error)});
}

void EngineImpl::publish() {
  if (batch_.empty()) return;
  auto ended = static_cast<int64_t>(batch_.ends.size());
  output_.post(batch_);
  if (ended > 0) {
    std::lock_guard lock(idle_mutex_);
    live_ -= ended;
  }
  if (live_ == 0) idle_.notify_all();
}

void EngineImpl::update_stats() {
  const BlockAllocator& kv = scheduler_.allocator();
  stats_.running = scheduler_.running();
  stats_.waiting = scheduler_.waiting();
  stats_.kv_blocks = kv.blocks(), stats_.kv_free = kv.free_blocks(), stats_.kv_cached = kv.cached_blocks();
  stats_.preemptions = scheduler_.preemptions();
  stats_.prefix_queries = static_cast<uint64_t>(scheduler_.tree().queries());
  stats_.prefix_hits = static_cast<uint64_t>(scheduler_.tree().hits());
  std::lock_guard lock(stats_mutex_);
  shown_ = stats_;
}

}  // namespace dg
