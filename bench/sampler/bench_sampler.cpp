// bench_sampler: what picking one token costs per row of logits. The rows together are larger than the second-level cache, as
// after a step of a batch. GB/s counts the logits once, also in percent of what one thread can read from memory. Every figure is the best
// of several rounds over all rows.
//
//   bench_sampler [--vocab N] [--rows N] [--rounds N]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/machine_measure.h"
#include "engine/sampler.h"
#include "engine/sampler_kernels.h"

namespace {

using namespace dg;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Rows {
  size_t vocab, count;
  std::vector<float> logits;
};

// `peaked`: a handful of tokens stand 8 above the others, as in most rows of a language model; else a bell curve alone.
Rows make_rows(size_t vocab, size_t count, bool peaked) {
  Rows rows{vocab, count, std::vector<float>(vocab * count)};
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> noise(1 << 20);
  for (float& x : noise) x = normal(random);
  for (size_t i = 0; i < rows.logits.size(); i++) rows.logits[i] = noise[(i * 7919) % noise.size()];
  if (peaked)
    for (size_t r = 0; r < count; r++)
      for (int i = 0; i < 5; i++) rows.logits[r * vocab + random() % vocab] = 20 - static_cast<float>(i);
  return rows;
}

struct Case {
  const char* name;
  SamplingParams params;
  bool mask = false, history = false;
  int logprobs = -1;
};

}  // namespace

int main(int argc, char** argv) {
  size_t vocab = 129280, count = 32;
  int rounds = 7;
  for (int i = 1; i < argc; i++) {
    std::string name = argv[i];
    const char* value = i + 1 < argc ? argv[++i] : nullptr;
    if (!value || (name != "--vocab" && name != "--rows" && name != "--rounds")) {
      fmt::print(stderr, "usage: bench_sampler [--vocab N] [--rows N] [--rounds N]\n");
      return 2;
    }
    if (name == "--vocab") vocab = static_cast<size_t>(std::clamp(std::atoi(value), 1, 1 << 22));
    if (name == "--rows") count = static_cast<size_t>(std::clamp(std::atoi(value), 1, 1024));
    if (name == "--rounds") rounds = std::clamp(std::atoi(value), 1, 1000);
  }
  std::mt19937 random(1);
  std::vector<uint32_t> mask((vocab + 31) / 32);
  for (uint32_t& word : mask) word = random() & random();  // a quarter of the vocabulary
  TokenHistory history;
  for (int i = 0; i < 4000; i++) history.add_output(static_cast<int32_t>(random() % vocab));
  const std::vector<Case> cases = {
      {"greedy", {}},
      {"temperature 1", {.temperature = 1}},
      {"temperature 0.6", {.temperature = 0.6}},
      {"T 0.6, top_p 0.95", {.temperature = 0.6, .top_p = 0.95}},
      {"T 1, top_k 50", {.temperature = 1, .top_k = 50}},
      {"T 1, min_p 0.05", {.temperature = 1, .min_p = 0.05}},
      {"T 1, top_p 0.95, typical 0.9", {.temperature = 1, .top_p = 0.95, .typical_p = 0.9}},
      {"T 0.6, penalties (4000 tokens)", {.temperature = 0.6, .repetition_penalty = 1.1, .frequency_penalty = 0.1}, false, true},
      {"T 0.6, top_p 0.95, mask", {.temperature = 0.6, .top_p = 0.95}, true},
      {"greedy, mask", {}, true},
      {"greedy, 20 logprobs", {}, false, false, 20},
      {"T 0.6, top_p 0.95, 20 logprobs", {.temperature = 0.6, .top_p = 0.95}, false, false, 20},
  };
  auto limits = machine_limits(0);
  if (!limits.ok()) {
    fmt::print(stderr, "bench_sampler: {}\n", limits.error().message);
    return exit_code(limits.error().kind);
  }
  const double read = limits->read.front().bytes_per_s.median;
  fmt::print("one thread reads {:.1f} GB/s; sampler kernels {}, vocabulary {}, {} rows ({:.1f} MB)\n", read * 1e-9,
             sampler_kernels().back().name, vocab, count, static_cast<double>(vocab * count * 4) * 1e-6);
  for (bool peaked : {true, false}) {
    Rows rows = make_rows(vocab, count, peaked);
    fmt::print("\n{:<34} {:>10} {:>8} {:>8}\n", peaked ? "peaked rows" : "flat rows (normal, sigma 2.5)", "us/row", "GB/s", "of read");
    for (const Case& c : cases) {
      Sampler sampler;
      SampleOutput output;
      double best = 1e30;
      int64_t check = 0;
      for (int round = 0; round <= rounds; round++) {
        double begin = now_s();
        for (size_t r = 0; r < count; r++) {
          sampler.sample({.logits = std::span(rows.logits).subspan(r * vocab, vocab),
                          .params = &c.params,
                          .history = c.history ? &history : nullptr,
                          .position = r,
                          .seed = 5,
                          .allowed = c.mask ? mask.data() : nullptr,
                          .logprobs = c.logprobs},
                         output);
          check += output.id;
        }
        if (round > 0) best = std::min(best, (now_s() - begin) / static_cast<double>(count));
      }
      if (check < 0) fmt::print("no token\n");
      const double rate = static_cast<double>(vocab * 4) / best;
      fmt::print("{:<34} {:>10.1f} {:>8.1f} {:>7.0f}%\n", c.name, best * 1e6, rate * 1e-9, 100 * rate / read);
    }
  }
  return 0;
}
