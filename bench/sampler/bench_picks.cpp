// bench_picks: what picking the tokens of a step costs on a device, beside copying its rows of logits. Per step of 1, 16, 64 and 256 rows:
// `ops` pick_rows alone, back to back; `step` DevicePicks: description, upload, ops, download; `finish` the host's sampler on
// the results, one thread; `copy` the download of whole rows. GB/s counts the logits once per `ops`. Best of several rounds.
//
//   bench_picks [--backend cuda] [--vocab N]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "device/plugin.h"
#include "engine/device_picks.h"

namespace {

using namespace dg;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Case {
  const char* name;
  SamplingParams params;
  bool mask = false, history = false;
  int logprobs = -1;
};

template <class T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  fmt::print(stderr, "bench_picks: {}\n", result.error().message);
  std::exit(exit_code(result.error().kind));
}

template <class F>
double best_of(int rounds, F f) {
  double best = 1e30;
  for (int i = 0; i <= rounds; i++) {
    const double begin = now_s();
    f();
    if (i > 0) best = std::min(best, now_s() - begin);
  }
  return best * 1e6;
}

}  // namespace

int main(int argc, char** argv) {
  std::string backend_name = "cuda";
  int64_t vocab = 152064;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--backend") backend_name = argv[i + 1];
    if (std::string(argv[i]) == "--vocab") vocab = std::clamp<int64_t>(std::atoll(argv[i + 1]), 256, kMostPickColumns);
  }
  constexpr int64_t kMostRows = 256;
  constexpr int kRounds = 20, kCalls = 20;
  std::unique_ptr<Backend> backend = must(load_backend(backend_name, {}));
  fmt::print("{}, vocabulary {}\n{:<32} {:>5} {:>9} {:>8} {:>9} {:>9} {:>9}  open\n", backend->description(), vocab, "us a step", "rows",
             "ops", "GB/s", "step", "finish", "copy");
  auto logits = must(backend->allocate(static_cast<size_t>(kMostRows * vocab) * 4, "logits"));
  auto host = must(backend->allocate_host(static_cast<size_t>(kMostRows * vocab) * 4, "logits"));
  auto scratch = must(backend->allocate(static_cast<size_t>(3 * kMostRows * 1024) * 4, "scratch"));
  auto specs_memory = must(backend->allocate(kMostRows * sizeof(PickSpec), "specs"));
  auto out_memory = must(backend->allocate(static_cast<size_t>(kMostRows * pick_words(kMostCandidates, true)) * 4, "picks"));
  auto picks = must(DevicePicks::create(*backend, vocab, kMostRows));
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> values(static_cast<size_t>(kMostRows * vocab)), noise(1 << 20);
  for (float& x : noise) x = normal(random);
  for (size_t i = 0; i < values.size(); i++) values[i] = noise[(i * 7919) % noise.size()];
  for (int64_t r = 0; r < kMostRows; r++)  // a few tokens stand out, as in most rows of a language model
    for (int i = 0; i < 5; i++) values[static_cast<size_t>(r * vocab) + random() % static_cast<size_t>(vocab)] = 20 - static_cast<float>(i);
  std::vector<uint32_t> mask(static_cast<size_t>((vocab + 31) / 32));
  for (uint32_t& word : mask) word = static_cast<uint32_t>(random() & random());
  TokenHistory history;
  for (int i = 0; i < 1000; i++) history.add_output(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  const Case cases[] = {{"greedy", {}},
                        {"temperature 1", {.temperature = 1}},
                        {"T 0.6, top_p 0.95", {.temperature = 0.6, .top_p = 0.95}},
                        {"T 1, top_k 50", {.temperature = 1, .top_k = 50}},
                        {"T 0.6, top_p 0.95, penalties", {.temperature = 0.6, .top_p = 0.95, .frequency_penalty = 0.1}, false, true},
                        {"greedy, mask", {}, true},
                        {"T 0.6, top_p, 20 logprobs", {.temperature = 0.6, .top_p = 0.95}, false, false, 20}};
  for (const Case& c : cases)
    for (int64_t rows : {int64_t{1}, int64_t{16}, int64_t{64}, kMostRows}) {
      backend->upload(logits->data(), values.data(), static_cast<size_t>(rows * vocab) * 4);
      const Tensor view = Tensor::of(logits->data(), Dtype::kF32, {rows, vocab});
      const PickSpec spec = picks_for(c.params, c.logprobs, vocab);
      const std::vector<PickSpec> specs(static_cast<size_t>(rows), spec);
      backend->upload(specs_memory->data(), specs.data(), specs.size() * sizeof(PickSpec));
      const bool draw = spec.flags & kPickDraw;
      const PickRows op{.out = Tensor::of(out_memory->data(), Dtype::kI32, {rows, pick_words(spec.candidates, draw)}),
                        .logits = view,
                        .specs = Tensor::of(specs_memory->data(), Dtype::kI32, {rows, static_cast<int64_t>(sizeof(PickSpec) / 4)}),
                        .most = spec.candidates,
                        .draw = draw,
                        .scratch = Tensor::of(scratch->data(), Dtype::kF32, {3, rows, (vocab + 255) / 256})};
      backend->synchronise();
      const double ops = best_of(kRounds,
                                 [&] {
                                   for (int i = 0; i < kCalls; i++) backend->pick_rows(op);
                                   backend->synchronise();
                                 }) /
                         kCalls;
      const SampleInput input{.params = &c.params,
                              .history = c.history ? &history : nullptr,
                              .position = 9,
                              .seed = 5,
                              .allowed = c.mask ? mask.data() : nullptr,
                              .logprobs = c.logprobs};
      const double step = best_of(kRounds, [&] {
        picks->begin(rows);
        for (int64_t i = 0; i < rows; i++) picks->add(i, input);
        picks->run(view);
      });
      Sampler sampler;
      SampleOutput output;
      int64_t open = 0;
      const double finish = best_of(kRounds, [&] {
        open = 0;
        for (int64_t i = 0; i < rows; i++) {
          SampleInput row = input;
          row.picked = picks->picked(i);
          sampler.sample(row, output);
          open += output.id == kNeedsRow;
        }
      });
      const double copy = best_of(3, [&] { backend->download(host->data(), logits->data(), view.bytes()); });
      fmt::print("{:<32} {:>5} {:>9.1f} {:>8.0f} {:>9.1f} {:>9.1f} {:>9.1f}  {}\n", c.name, rows, ops,
                 static_cast<double>(view.bytes()) / ops * 1e-3, step, finish, copy, open);
    }
  return 0;
}
