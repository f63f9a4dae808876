#include "engine/scheduler.h"

#include <fmt/core.h>

#include <algorithm>

namespace dg {

Sequence::Sequence(RequestState& of, int number, BlockAllocator& allocator, int block_tokens)
    : request(of), index(number), blocks(allocator, block_tokens) {
  const EngineRequest& r = of.request;
  ids.reserve(r.prompt.size() + static_cast<size_t>(std::clamp<int64_t>(r.max_tokens, 16, 4096)));
  ids = r.prompt;
  prompt_tokens = static_cast<int64_t>(r.prompt.size());
  seed = r.sampling.seed + static_cast<uint64_t>(number);
  if (r.sampling.penalises()) history.add_prompt(r.prompt);
  if (r.grammar) grammar = GrammarState(r.grammar);
}

Scheduler::Scheduler(BlockAllocator& allocator, int block_tokens, const SchedulerOptions& options)
    : allocator_(allocator), block_tokens_(block_tokens), options_(options), tree_(allocator, block_tokens) {
  CHECK(options.max_running > 0 && options.max_step_tokens >= options.max_running && options.max_logit_rows >= options.max_running);
}

Scheduler::~Scheduler() = default;

Result<void> Scheduler::check(const EngineRequest& request) const {
  auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0) return input_error("the prompt has no tokens: give it some text");
  bool generates = request.pooling == Pooling::kNone;
  if (prompt + (generates ? 1 : 0) > options_.max_model_len)
    return input_error(fmt::format("the prompt has {} tokens, this server's context is {} tokens (--max-model-len){}; shorten the prompt",
                                   prompt, options_.max_model_len, generates ? " with at least one for the answer" : ""));
  int64_t longest = options_.max_model_len;
  if (request.max_tokens > 0) longest = prompt + request.max_tokens;
  if (!generates) longest = prompt;
  if (generates && longest > options_.max_model_len)
    return input_error(
        fmt::format("max_tokens {} and a prompt of {} tokens are {} together, this server's context is {} tokens "
                    "(--max-model-len); lower max_tokens to at most {}",
                    request.max_tokens, prompt, longest, options_.max_model_len, options_.max_model_len - prompt));
  int64_t need = (std::min(longest, options_.max_model_len) + block_tokens_ - 1) / block_tokens_;
  if (need > allocator_.blocks())
    return input_error(
        fmt::format("the request may need {} KV cache blocks of {} tokens (a prompt of {} and {} generated tokens), this server "
                    "has {} in all; lower max_tokens to at most {}",
                    need, block_tokens_, prompt, longest - prompt, allocator_.blocks(),
                    std::max<int64_t>(0, allocator_.blocks() * block_tokens_ - prompt)));
  if (request.n < 1 || request.n > options_.max_running)
    return input_error(fmt::format("n: expected 1 to {} (--max-num-seqs), found {}", options_.max_running, request.n));
  return {};
}

RequestState& Scheduler::add(std::unique_ptr<RequestState> request) {
  RequestState& r = *request;
  r.order = next_order_++;
  r.salt = fmt::format("{}:{}{}", r.request.tenant.size(), r.request.tenant, r.request.cache_salt);
  r.usage.prompt_tokens = static_cast<int64_t>(r.request.prompt.size());
  int answers = r.request.pooling == Pooling::kNone ? r.request.n : 1;
  for (int i = 0; i < answers; i++) r.sequences.push_back(std::make_unique<Sequence>(r, i, allocator_, block_tokens_));
  r.unfinished = answers;
  Tenant& tenant = tenants_[r.request.tenant];
  if (tenant.requests++ == 0) {
    // A tenant that was away has not saved up service: it starts level with the least served of those that are here.
    double least = -1;
    for (const auto& [name, other] : tenants_)
      if (&other != &tenant && other.requests > 0 && (least < 0 || other.served < least)) least = other.served;
    if (least > tenant.served) tenant.served = least;
  }
  next_deadline_ = std::min(next_deadline_, r.request.deadline);
  by_handle_[r.handle] = &r;
  requests_.emplace(r.order, std::move(request));
  enqueue(*r.sequences[0]);
  return r;
}

void Scheduler::enqueue(Sequence& sequence) {
  CHECK(sequence.state != Sequence::State::kWaiting && sequence.state != Sequence::State::kFinished);
  sequence.state = Sequence::State::kWaiting;
  tenant_of(sequence).queue.emplace(run_order(sequence), &sequence);
  waiting_++;
}

void Scheduler::dequeue(Sequence& sequence) {
  CHECK(sequence.state == Sequence::State::kWaiting && tenant_of(sequence).queue.erase({run_order(sequence), &sequence}) == 1);
  waiting_--;
}

Sequence* Scheduler::best_waiting() {
  Sequence* best = nullptr;
  double best_served = 0;
  for (auto& [name, tenant] : tenants_) {
    for (const auto& [order, sequence] : tenant.queue) {
      if (sequence->paused()) continue;
      bool better = !best || order.priority < run_order(*best).priority ||
                    (order.priority == run_order(*best).priority &&
                     (tenant.served < best_served || (tenant.served == best_served && order < run_order(*best))));
      if (better) best = sequence, best_served = tenant.served;
      break;  // the first of a tenant's queue stands before its others
    }
  }
  return best;
}

void Scheduler::plan(StepPlan& plan) {
  plan.clear();
  int64_t budget = options_.max_step_tokens, logit_budget = options_.max_logit_rows;
  // Rows that generate. Every running sequence is sure of one row: the budgets are at least max_running.
  for (size_t i = 0; i < running_.size(); i++) {
    Sequence& s = *running_[i];
    if (s.paused() || !s.decoding()) continue;
    while (!reserve(s, s.computed + 1)) {
      // Victims stand behind this sequence in run order, or are paused, so none of them is in the plan.
      if (preempt_for(s)) break;
      auto at = std::find(running_.begin(), running_.end(), &s);
      CHECK(at != running_.end());
      i = static_cast<size_t>(at - running_.begin());
    }
    if (s.state != Sequence::State::kRunning) {  // it was the last itself
      i--;
      continue;
    }
    plan.items.push_back({.sequence = &s, .begin = s.computed, .rows = 1, .decode = true, .wants_token = true});
    budget--, logit_budget--;
  }
  // Drafts take what is left, and never a block from anybody.
  int64_t undecided = 0;
  for (Sequence* s : running_) undecided += !s->paused() && !s->decoding();
  for (StepItem& item : plan.items) {
    Sequence& s = *item.sequence;
    int64_t room = std::min(budget, logit_budget - undecided);
    const EngineRequest& r = s.request.request;
    int64_t most = options_.max_model_len - static_cast<int64_t>(s.ids.size()) - 1;
    if (r.max_tokens > 0) most = std::min(most, r.max_tokens - s.generated() - 1);
    auto drafts = static_cast<int32_t>(std::min({static_cast<int64_t>(s.drafts.size()), room, std::max<int64_t>(0, most)}));
    if (drafts > 0 && s.blocks.missing_blocks(s.computed + 1 + drafts) <= allocator_.free_blocks() &&
        s.blocks.try_reserve(s.computed + 1 + drafts)) {
      item.drafts = drafts;
      item.rows += drafts;
      budget -= drafts, logit_budget -= drafts;
    }
    plan.decode_tokens += item.rows;
  }
  decode_rows_left_ = options_.max_logit_rows - plan.decode_tokens;
  for (Sequence* s : running_)
    if (!s->paused() && !s->decoding() && budget > 0) plan_prompt(*s, plan, &budget, &logit_budget);
  while (budget > 0 && logit_budget > 0) {
    Sequence* next = best_waiting();
    if (!next) break;
    if (running() < options_.max_running && admit(*next, plan, &budget, &logit_budget)) continue;
    if (!preempt_paused()) break;
  }
}

// Adds the next rows that are not generated for the first time: a chunk of the prompt, or generated tokens that a preemption
// took out of the cache. The two never share an item: they run on different paths of the attention.
bool Scheduler::plan_prompt(Sequence& s, StepPlan& plan, int64_t* budget, int64_t* logit_budget) {
  bool prompt = s.computed < s.prompt_tokens;
  bool prompt_logits = prompt && s.index == 0 && s.request.request.prompt_logprobs >= 0;
  int64_t end = prompt ? s.prompt_tokens : static_cast<int64_t>(s.ids.size());
  int64_t rows = std::min(end - s.computed, *budget);
  if (options_.max_prefill_chunk > 0) rows = std::min(rows, options_.max_prefill_chunk);
  if (prompt_logits) rows = std::min(rows, *logit_budget);
  if (!prompt) rows = std::min(rows, decode_rows_left_);
  bool last = s.computed + rows == static_cast<int64_t>(s.ids.size());
  if (last && *logit_budget == 0) rows--, last = false;
  if (rows <= 0) return false;
  plan.items.push_back({.sequence = &s,
                        .begin = s.computed,
                        .rows = static_cast<int32_t>(rows),
                        .decode = !prompt,
                        .wants_token = last && s.request.request.pooling == Pooling::kNone,
                        .prompt_logits = prompt_logits});
  *budget -= rows;
  if (!prompt) decode_rows_left_ -= rows;
  *logit_budget -= prompt_logits ? rows : last;
  plan.prefill_tokens += rows;
  return true;
}

bool Scheduler::admit(Sequence& s, StepPlan& plan, int64_t* budget, int64_t* logit_budget) {
  const EngineRequest& r = s.request.request;
  auto total = static_cast<int64_t>(s.ids.size());
  // Logits of every prompt row, or a mean over all rows, cannot come out of the cache.
  bool may_hit =
      options_.prefix_cache && (r.prompt_logprobs < 0 || s.index > 0) && r.pooling != Pooling::kMean && s.blocks.blocks().empty();
  if (may_hit) {
    PrefixTree::Match match = tree_.match(s.request.salt, s.ids, (options_.deterministic ? s.prompt_tokens : total) - 1);
    s.blocks.share(match.blocks);
    s.computed = match.tokens;
    s.inserted_blocks = match.tokens / block_tokens_;
  }
  // One spare block for every running sequence, so that the newcomer is not the reason for the next preemption.
  int64_t missing = s.blocks.missing_blocks(total);
  if (!make_room(missing + (running_.empty() ? 0 : running()), &s) || !s.blocks.try_reserve(total)) {
    // It holds nothing while it waits (blocks for answers with n > 1 stay where nobody needs them).
    if (may_hit) release_blocks(s);
    return false;
  }
  dequeue(s);
  s.state = Sequence::State::kRunning;
  if (!s.ran_before && s.index == 0) s.request.usage.cached_tokens = s.computed;
  s.ran_before = true;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &s, [](auto* a, auto* b) { return run_order(*a) < run_order(*b); }),
                  &s);
  if (s.decoding()) {                         // it was preempted, and all but its last token is still cached
    if (decode_rows_left_ == 0) return true;  // others fill the step; it is among them in the next
    plan.items.push_back({.sequence = &s, .begin = s.computed, .rows = 1, .decode = true, .wants_token = true});
    plan.decode_tokens++;
    --*budget, --*logit_budget, --decode_rows_left_;
    return true;
  }
  plan_prompt(s, plan, budget, logit_budget);
  return true;
}

// Makes sure that `blocks` are free, at the cost of the cache and of answers that wait; never of what runs.
bool Scheduler::make_room(int64_t blocks, const Sequence* except) {
  int64_t lacking = blocks - allocator_.free_blocks();
  if (lacking <= 0) return true;
  if (allocator_.cached_blocks() >= lacking) return tree_.evict(lacking) >= lacking;
  for (auto& [name, tenant] : tenants_)
    for (const auto& [order, sequence] : tenant.queue)
      if (sequence != except) release_blocks(*sequence);
  lacking = blocks - allocator_.free_blocks();
  return lacking <= 0 || (allocator_.cached_blocks() >= lacking && tree_.evict(lacking) >= lacking);
}

bool Scheduler::reserve(Sequence& s, int64_t tokens) {
  int64_t missing = s.blocks.missing_blocks(tokens);
  return missing == 0 || (make_room(missing, nullptr) && s.blocks.try_reserve(tokens));
}

// Preempts one sequence so that `s` can go on; true when that was `s` itself.
bool Scheduler::preempt_for(const Sequence& s) {
  Sequence* victim = running_.back();
  for (size_t i = running_.size(); i-- > 0;)
    if (running_[i]->paused() && running_[i] != &s) {
      victim = running_[i];
      break;
    }
  CHECK(victim != &s || running_.size() > 1 || !s.blocks.blocks().empty()) << "a request that fits alone found no block";
  preempt(*victim);
  return victim == &s;
}

// Clients that do not read must not keep the others out.
bool Scheduler::preempt_paused() {
  for (size_t i = running_.size(); i-- > 0;) {
    if (!running_[i]->paused()) continue;
    preempt(*running_[i]);
    return true;
  }
  return false;
}

void Scheduler::preempt(Sequence& s) {
  insert_blocks(s, options_.deterministic ? std::min(s.computed, s.prompt_tokens) : s.computed);
  release_blocks(s);
  s.drafts.clear();
  s.pooled.clear();
  running_.erase(std::find(running_.begin(), running_.end(), &s));
  s.request.usage.preemptions++;
  preemptions_++;
  enqueue(s);
}

void Scheduler::release_blocks(Sequence& s) {
  s.blocks.clear();
  s.computed = 0;
  s.inserted_blocks = 0;
}

void Scheduler::insert_blocks(Sequence& s, int64_t tokens) {
  if (!options_.prefix_cache) return;
  int64_t blocks = tokens / block_tokens_;
  if (blocks <= s.inserted_blocks) return;
  tree_.insert(s.request.salt, std::span(s.ids).first(static_cast<size_t>(blocks * block_tokens_)),
               std::span(s.blocks.blocks()).first(static_cast<size_t>(blocks)));
  s.inserted_blocks = blocks;
}

void Scheduler::advance(Sequence& s, int64_t computed) {
  tenant_of(s).served += static_cast<double>(computed - s.computed);
  bool was_prompt = s.computed < s.prompt_tokens;
  s.computed = computed;
  if (!was_prompt) return;
  insert_blocks(s, std::min(computed, s.prompt_tokens));  // early, so that requests behind it can share
  if (computed >= s.prompt_tokens && s.index == 0) start_answers(s.request);
}

// The prompt of a request with n > 1 is in the cache: its other answers share the whole blocks, and wait like any sequence.
void Scheduler::start_answers(RequestState& request) {
  const Sequence& first = *request.sequences[0];
  auto shared = static_cast<size_t>((first.prompt_tokens - 1) / block_tokens_);
  for (auto& sequence : request.sequences) {
    if (sequence->state != Sequence::State::kHeld) continue;
    std::vector<int32_t> blocks(first.blocks.blocks().begin(), first.blocks.blocks().begin() + static_cast<std::ptrdiff_t>(shared));
    for (int32_t block : blocks) allocator_.retain(block);
    sequence->blocks.share(blocks);
    sequence->computed = static_cast<int64_t>(shared) * block_tokens_;
    sequence->inserted_blocks = static_cast<int64_t>(shared);
    enqueue(*sequence);
  }
}

bool Scheduler::finish(Sequence& s) {
  CHECK(s.state != Sequence::State::kFinished);
  if (s.state == Sequence::State::kWaiting) dequeue(s);
  if (s.state == Sequence::State::kRunning) {
    running_.erase(std::find(running_.begin(), running_.end(), &s));
    insert_blocks(s, options_.deterministic ? std::min(s.computed, s.prompt_tokens) : s.computed);
  }
  release_blocks(s);
  s.drafts.clear();
  s.state = Sequence::State::kFinished;
  return --s.request.unfinished == 0;
}

std::unique_ptr<RequestState> Scheduler::remove(RequestState& request) {
  for (auto& sequence : request.sequences)
    if (sequence->state != Sequence::State::kFinished) finish(*sequence);
  auto tenant = tenants_.find(request.request.tenant);
  if (--tenant->second.requests == 0 && tenants_.size() > 1024) tenants_.erase(tenant);  // bounded, whatever names come
  by_handle_.erase(request.handle);
  auto node = requests_.extract(request.order);
  return std::move(node.mapped());
}

RequestState* Scheduler::find(uint64_t handle) const {
  auto at = by_handle_.find(handle);
  return at == by_handle_.end() ? nullptr : at->second;
}

void Scheduler::for_each(const std::function<void(RequestState&)>& visit) const {
  for (auto at = requests_.begin(); at != requests_.end();) visit(*(at++)->second);
}

void Scheduler::expired(EngineClock::time_point now, std::vector<RequestState*>& out) {
  out.clear();
  if (now < next_deadline_) return;
  next_deadline_ = EngineClock::time_point::max();
  for (const auto& [order, request] : requests_) {
    if (request->request.deadline <= now) out.push_back(request.get());
    else next_deadline_ = std::min(next_deadline_, request->request.deadline);
  }
}

void Scheduler::check_integrity() const {
  allocator_.check_integrity();
  tree_.check_integrity();
  std::vector<int> refs(static_cast<size_t>(allocator_.blocks()), 0);
  int64_t waiting = 0, running = 0;
  for (const auto& [order, request] : requests_) {
    int64_t unfinished = 0;
    for (const auto& s : request->sequences) {
      unfinished += s->state != Sequence::State::kFinished;
      waiting += s->state == Sequence::State::kWaiting;
      running += s->state == Sequence::State::kRunning;
      CHECK(s->state != Sequence::State::kFinished || s->blocks.blocks().empty()) << "a finished answer holds blocks";
      CHECK(s->computed <= static_cast<int64_t>(s->blocks.blocks().size()) * block_tokens_) << "rows without blocks";
      for (int32_t block : s->blocks.blocks()) refs[static_cast<size_t>(block)]++;
    }
    CHECK(unfinished == request->unfinished);
  }
  CHECK(waiting == waiting_ && running == this->running()) << waiting << " " << waiting_ << " " << running;
  int64_t unused = 0;
  for (int64_t b = 0; b < allocator_.blocks(); b++) {
    int held = refs[static_cast<size_t>(b)], all = allocator_.refs(static_cast<int32_t>(b));
    CHECK(all == held || all == held + 1) << "block " << b << ": " << all << " references, " << held << " in sequences";
    unused += held == 0;
  }
  CHECK(unused == allocator_.free_blocks() + allocator_.cached_blocks());
  for (size_t i = 1; i < running_.size(); i++) CHECK(run_order(*running_[i - 1]) < run_order(*running_[i]));
}

}  // namespace dg
