// Metrics: what Prometheus scrapes, under vLLM's names, so that dashboards made for vLLM work.
//
// The engine thread writes counts into plain atomics of its own (one writer: a load and a store, no locked instruction); a
// scrape reads them and builds prometheus-cpp's families. A scrape sees a histogram's buckets, sum and count from slightly
// different moments; its count is the sum of its buckets, so it never contradicts itself.
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/http_server.h"

namespace dg {

struct MetricsOptions {
  std::string model_name;
  std::string prefix = "vllm";                                    // before the colon
  int64_t max_model_len = 32768;                                  // the last bucket of token counts
  std::vector<std::pair<std::string, std::string>> cache_config;  // labels of cache_config_info: block_size, num_gpu_blocks, ...
};

// Written by one thread, read by any.
class LocalHistogram {
 public:
  explicit LocalHistogram(std::vector<double> upper_bounds);
  void observe(double value, uint64_t times = 1);
  const std::vector<double>& bounds() const { return bounds_; }
  uint64_t count(size_t bucket) const { return counts_[bucket].load(std::memory_order_relaxed); }  // one more than bounds
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

class Metrics final : public EngineObserver {
 public:
  explicit Metrics(MetricsOptions options);

  void set_startup_s(double seconds) { startup_s_ = seconds; }
  void set_weight_load_s(double seconds) { weight_load_s_ = seconds; }

  // Engine thread.
  void on_step(int64_t prefill_tokens, int64_t decode_tokens, double seconds, double waited) override;
  void on_token(bool first, double seconds) override;
  void on_request_end(const EngineRequest& request, const RequestUsage& usage, FinishReason reason) override;

  // Prometheus text format 0.0.4; any thread. Content type: text/plain; version=0.0.4; charset=utf-8
  std::string render(const EngineStats& engine, const HttpStats& http) const;

 private:
  static constexpr size_t kReasons = 4;  // stop, length, abort, error

  const MetricsOptions options_;
  std::atomic<double> startup_s_{0}, weight_load_s_{0};
  std::array<std::atomic<uint64_t>, kReasons> ended_{};
  LocalHistogram ttft_, itl_, tpot_, e2e_, queue_, prefill_, decode_, inference_;
  LocalHistogram prompt_tokens_, generation_tokens_, max_tokens_, n_, iteration_tokens_;
  LocalHistogram step_, step_gap_;
};

}  // namespace dg
