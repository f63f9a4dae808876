// Host time of the engine per step, everything but the model: commands, plan, publishing and commit, with 1 to 256 running sequences
// and a step runner that only writes tokens. Prints the median, and its parts.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/sequence.h"

namespace dg {
namespace {

using Clock = std::chrono::steady_clock;

// Notes when it is called: the time between two calls, less its own, is the engine's.
class NullRunner : public StepRunner {
 public:
  size_t wanted = 0;
  std::vector<double> host_us;
  std::atomic<bool> done{false};

  void run(const StepPlan& plan, StepResults& results) override {
    auto begin = Clock::now();
    size_t n = plan.items.size();
    bool full = n == wanted && plan.prefill_tokens == 0;
    if (full && before_full_ && host_us.size() < 4000) host_us.push_back(std::chrono::duration<double, std::micro>(begin - left_).count());
    before_full_ = full;
    if (results.items.size() < n) results.items.resize(n);
    for (size_t i = 0; i < n; i++) {
      ItemResult& r = results.items[i];
      if (r.tokens.empty()) r.tokens.emplace_back();
      r.token_count = plan.items[i].wants_token;
      r.accepted = 0;
      r.end.reset();
      r.failed = false;
      r.tokens[0].id = 300 + static_cast<int32_t>(i % 64);
    }
    // A step takes at least this long on any model: what the output thread does meanwhile is not on the engine's path.
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    done = host_us.size() >= 2000;
    left_ = Clock::now();
  }

 private:
  Clock::time_point left_;
  bool before_full_ = false;
};

class Counter : public RequestListener {
 public:
  void on_delta(const OutputDelta& delta) override { bytes += delta.text.size(); }
  void on_end(const RequestUsage&, const Error*) override {}
  size_t bytes = 0;
};

int run(const char* model) {
  auto tokenizer = Tokenizer::load(model);
  if (!tokenizer.ok()) {
    fmt::print(stderr, "{}\n", tokenizer.error().message);
    return 2;
  }
  fmt::print("{:>9} {:>12} {:>10} {:>10} {:>14}\n", "sequences", "median us", "p90 us", "p99 us", "ns per sequence");
  for (size_t sequences : {size_t{1}, size_t{16}, size_t{64}, size_t{256}}) {
    NullRunner runner;
    runner.wanted = sequences;
    BlockAllocator allocator(400000);
    EngineOptions options{.max_model_len = 16384, .max_step_tokens = 4096, .max_running = 256, .max_waiting = 1024};
    EngineParts parts{.runner = &runner,
                      .allocator = &allocator,
                      .block_tokens = 16,
                      .vocab = 4096,
                      .max_logit_rows = 256,
                      .tokenizer = tokenizer->get()};
    auto engine = Engine::create(parts, options);
    for (size_t i = 0; i < sequences; i++) {
      EngineRequest request;
      request.prompt.assign(100, 300);
      request.prompt[0] = 300 + static_cast<int32_t>(i);
      request.max_tokens = 10000;
      request.stop = {"never there"};
      if (!engine->submit(std::move(request), std::make_shared<Counter>()).ok()) return 1;
    }
    while (!runner.done) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    engine.reset();
    std::vector<double>& us = runner.host_us;
    std::sort(us.begin(), us.end());
    auto at = [&](double p) { return us[static_cast<size_t>(p * static_cast<double>(us.size() - 1))]; };
    fmt::print("{:>9} {:>12.1f} {:>10.1f} {:>10.1f} {:>14.0f}\n", sequences, at(0.5), at(0.9), at(0.99),
               1000 * at(0.5) / static_cast<double>(sequences));
  }
  return 0;
}

}  // namespace
}  // namespace dg

int main(int argc, char** argv) { return dg::run(argc > 1 ? argv[1] : "models/mini-r1"); }
