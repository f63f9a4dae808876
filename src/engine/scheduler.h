// Scheduler: decides which rows run in the next step. Pure host code: no model, no clock of its own, no threads. Engine
// thread only. docs/engine_contract.md, section Scheduling, is the rule book.
//
//  - Running sequences that generate get their row (and drafts) first, in run order; then prompts in chunks, in run order;
//    then waiting requests are admitted, while rows, sequences and blocks last.
//  - Run order: priority (lower first), then arrival. Among waiting requests of one priority the tenant that was served the
//    fewest tokens comes first (virtual token counter, arXiv 2401.00588), then arrival.
//  - When a generating sequence finds no block: cached blocks nobody uses go first (least recently used), then blocks held
//    for answers that wait (n > 1), then the last paused, then the last running sequence in run order is preempted: its
//    blocks go to the prefix cache, it waits at its old place and is computed again.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/sequence.h"
#include "engine/step.h"
#include "kv/prefix_tree.h"

namespace dg {

struct SchedulerOptions {
  int64_t max_model_len = 4096;
  int64_t max_step_tokens = 512;
  int64_t max_running = 64;
  int64_t max_prefill_chunk = 0;  // 0: the step's budget
  int64_t max_logit_rows = 64;    // at least max_running; also the most generation rows (drafts, replayed tokens) of a step
  bool prefix_cache = true;
  // Only blocks computed as prompt rows are shared: generated rows may differ from them in rounding.
  bool deterministic = false;
};

class Scheduler {
 public:
  Scheduler(BlockAllocator& allocator, int block_tokens, const SchedulerOptions& options);
  ~Scheduler();

  // Whether the request can ever run; the error names the numbers. Reads only the options: any thread.
  Result<void> check(const EngineRequest& request) const;

  // Takes the request; its sequences are made here. Call check() before.
  RequestState& add(std::unique_ptr<RequestState> request);
  // Fills `plan` (cleared first). Empty when nothing can run.
  void plan(StepPlan& plan);
  // Rows of the item have run: the sequence has `computed` rows in the cache. Tokens are appended by the caller before.
  void advance(Sequence& sequence, int64_t computed);
  // The answer is over: its blocks go to the prefix cache or back. True when it was the request's last.
  bool finish(Sequence& sequence);
  // Ends a request at whatever stage and destroys it. Not while its rows are in flight.
  std::unique_ptr<RequestState> remove(RequestState& request);

  RequestState* find(uint64_t handle) const;
  void for_each(const std::function<void(RequestState&)>& visit) const;  // in order of arrival
  // Requests whose deadline is before `now`, and the earliest deadline of the others.
  void expired(EngineClock::time_point now, std::vector<RequestState*>& out);
  EngineClock::time_point next_deadline() const { return next_deadline_; }

  void drop_cache() { tree_.clear(); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return waiting_; }  // sequences in the queue
  int64_t requests() const { return static_cast<int64_t>(requests_.size()); }
  uint64_t preemptions() const { return preemptions_; }
  const PrefixTree& tree() const { return tree_; }
  BlockAllocator& allocator() { return allocator_; }
  const SchedulerOptions& options() const { return options_; }
  void check_integrity() const;  // aborts (CHECK) when the books do not balance

 private:
  struct Tenant {
    double served = 0;  // tokens
    std::set<std::pair<RunOrder, Sequence*>> queue;
    int64_t requests = 0;
  };

  void enqueue(Sequence& sequence);
  void dequeue(Sequence& sequence);
  Sequence* best_waiting();
  bool admit(Sequence& sequence, StepPlan& plan, int64_t* budget, int64_t* logit_budget);
  bool plan_prompt(Sequence& sequence, StepPlan& plan, int64_t* budget, int64_t* logit_budget);
  bool make_room(int64_t blocks, const Sequence* except);
  bool reserve(Sequence& sequence, int64_t tokens);
  bool preempt_for(const Sequence& sequence);
  bool preempt_paused();
  void preempt(Sequence& sequence);
  void release_blocks(Sequence& sequence);
  void insert_blocks(Sequence& sequence, int64_t tokens);
  void start_answers(RequestState& request);
  Tenant& tenant_of(const Sequence& sequence) { return tenants_[sequence.request.request.tenant]; }

  BlockAllocator& allocator_;
  const int block_tokens_;
  const SchedulerOptions options_;
  PrefixTree tree_;
  std::map<uint64_t, std::unique_ptr<RequestState>> requests_;  // by order of arrival
  std::unordered_map<uint64_t, RequestState*> by_handle_;
  std::vector<Sequence*> running_;  // in run order
  std::map<std::string, Tenant> tenants_;
  int64_t waiting_ = 0;
  int64_t decode_rows_left_ = 0;  // of the step that is planned
  uint64_t next_order_ = 1, preemptions_ = 0;
  EngineClock::time_point next_deadline_ = EngineClock::time_point::max();
};

}  // namespace dg
