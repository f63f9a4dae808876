#include "server/metrics.h"

#include <dirent.h>
#include <fmt/core.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <sstream>

namespace dg {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Buckets of vLLM.
const std::vector<double> kTtftBuckets = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const std::vector<double> kTokenLatencyBuckets = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                                  0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
const std::vector<double> kRequestBuckets = {0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kIterationBuckets = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const std::vector<double> kStepBuckets = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5};
const std::vector<double> kStepGapBuckets = {0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1};
const std::vector<double> kNBuckets = {1, 2, 5, 10, 20};
constexpr const char* kReasonNames[] = {"stop", "length", "abort", "error"};

// 1, 2, 5, 10, 20, 50, ... up to `max`.
std::vector<double> one_two_five(int64_t max) {
  std::vector<double> bounds;
  for (double power = 1;; power *= 10) {
    for (double mantissa : {1.0, 2.0, 5.0}) {
      if (mantissa * power > static_cast<double>(std::max<int64_t>(max, 1))) return bounds;
      bounds.push_back(mantissa * power);
    }
  }
}

double seconds_between(EngineClock::time_point from, EngineClock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

size_t reason_index(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return 0;
    case FinishReason::kLength:
    case FinishReason::kContext: return 1;
    case FinishReason::kCancelled:
    case FinishReason::kDeadline: return 2;
    case FinishReason::kError: break;
  }
  return 3;
}

// The families of one scrape, all with the same labels.
class Families {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  Families(std::string prefix, Labels labels) : prefix_(std::move(prefix)), labels_(std::move(labels)) {}

  void gauge(const char* name, const char* help, double value) { add(name, help, MetricType::Gauge, value); }
  void counter(const char* name, const char* help, double value) { add(name, help, MetricType::Counter, value); }
  void add(const char* name, const char* help, MetricType type, double value, const Labels& more = {}) {
    family(name, help, type);
    series(value, more);
  }
  void family(const char* name, const char* help, MetricType type) {
    MetricFamily& family = families_.emplace_back();
    family.name = prefix_ + name;
    family.help = help;
    family.type = type;
  }
  // One more series of the family begun last.
  void series(double value, const Labels& more) {
    ClientMetric metric = labelled(more);
    if (families_.back().type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    families_.back().metric.push_back(std::move(metric));
  }
  void histogram(const char* name, const char* help, const LocalHistogram& local) {
    family(name, help, MetricType::Histogram);
    ClientMetric metric = labelled({});
    uint64_t cumulative = 0;
    for (size_t i = 0; i <= local.bounds().size(); ++i) {
      cumulative += local.count(i);
      metric.histogram.bucket.push_back({cumulative, i < local.bounds().size() ? local.bounds()[i] : INFINITY});
    }
    metric.histogram.sample_count = cumulative;
    metric.histogram.sample_sum = local.sum();
    families_.back().metric.push_back(std::move(metric));
  }
  void without_prefix_and_labels() {
    prefix_.clear();
    labels_.clear();
  }
  std::string text() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return std::move(out).str();
  }

 private:
  ClientMetric labelled(const Labels& more) const {
    ClientMetric metric;
    for (const Labels* labels : {&labels_, &more}) {
      for (const auto& [name, value] : *labels) metric.label.push_back({name, value});
    }
    return metric;
  }

  std::string prefix_;
  Labels labels_;
  std::vector<MetricFamily> families_;
};

struct ProcessFigures {
  double resident_bytes = 0, virtual_bytes = 0, cpu_s = 0, start_s = 0, open_fds = 0, max_fds = 0;
};

ProcessFigures process_figures() {
  ProcessFigures out;
  const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  if (std::FILE* file = std::fopen("/proc/self/stat", "re")) {
    char text[2048];
    const size_t got = std::fread(text, 1, sizeof text - 1, file);
    std::fclose(file);
    text[got] = '\0';
    unsigned long user = 0, system = 0, virtual_bytes = 0;
    unsigned long long start = 0;
    long resident_pages = 0;
    // The program's name, in parentheses, may hold spaces and parentheses.
    const char* rest = std::strrchr(text, ')');
    static constexpr const char* kFields = " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d %*d %llu %lu %ld";
    if (rest != nullptr && std::sscanf(rest + 1, kFields, &user, &system, &start, &virtual_bytes, &resident_pages) == 5) {
      out.cpu_s = static_cast<double>(user + system) / ticks;
      out.virtual_bytes = static_cast<double>(virtual_bytes);
      out.resident_bytes = static_cast<double>(resident_pages) * static_cast<double>(::sysconf(_SC_PAGESIZE));
      timespec now{}, up{};
      clock_gettime(CLOCK_REALTIME, &now);
      clock_gettime(CLOCK_BOOTTIME, &up);
      const double boot = static_cast<double>(now.tv_sec - up.tv_sec) + static_cast<double>(now.tv_nsec - up.tv_nsec) * 1e-9;
      out.start_s = std::floor((boot + static_cast<double>(start) / ticks) * 100) / 100;
    }
  }
  if (DIR* folder = ::opendir("/proc/self/fd")) {
    while (const dirent* entry = ::readdir(folder)) out.open_fds += entry->d_name[0] != '.';
    ::closedir(folder);
    out.open_fds -= 1;  // the folder itself
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) out.max_fds = static_cast<double>(limit.rlim_cur);
  return out;
}

}  // namespace

LocalHistogram::LocalHistogram(std::vector<double> upper_bounds) : bounds_(std::move(upper_bounds)), counts_(bounds_.size() + 1) {}

void LocalHistogram::observe(double value, uint64_t times) {
  if (!(value >= 0)) value = 0;  // a clock that was set, or NaN: a histogram's sum must not fall
  const size_t bucket = static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin());
  counts_[bucket].store(counts_[bucket].load(std::memory_order_relaxed) + times, std::memory_order_relaxed);
  sum_.store(sum_.load(std::memory_order_relaxed) + value * static_cast<double>(times), std::memory_order_relaxed);
}

Metrics::Metrics(MetricsOptions options)
    : options_(std::move(options)),
      ttft_(kTtftBuckets),
      itl_(kTokenLatencyBuckets),
      tpot_(kTokenLatencyBuckets),
      e2e_(kRequestBuckets),
      queue_(kRequestBuckets),
      prefill_(kRequestBuckets),
      decode_(kRequestBuckets),
      inference_(kRequestBuckets),
      prompt_tokens_(one_two_five(options_.max_model_len)),
      generation_tokens_(one_two_five(options_.max_model_len)),
      max_tokens_(one_two_five(options_.max_model_len)),
      n_(kNBuckets),
      iteration_tokens_(kIterationBuckets),
      step_(kStepBuckets),
      step_gap_(kStepGapBuckets) {}

void Metrics::on_step(int64_t prefill_tokens, int64_t decode_tokens, double seconds, double waited) {
  iteration_tokens_.observe(static_cast<double>(prefill_tokens + decode_tokens));
  step_.observe(seconds);
  step_gap_.observe(waited);
}

void Metrics::on_token(bool first, double seconds) { (first ? ttft_ : itl_).observe(seconds); }

void Metrics::on_request_end(const EngineRequest& request, const RequestUsage& usage, FinishReason reason) {
  std::atomic<uint64_t>& ended = ended_[reason_index(reason)];
  ended.store(ended.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  const RequestTimes& times = usage.times;
  const EngineClock::time_point never{};
  e2e_.observe(seconds_between(times.arrived, times.finished));
  if (times.scheduled != never) {
    queue_.observe(seconds_between(times.arrived, times.scheduled));
    inference_.observe(seconds_between(times.scheduled, times.finished));
  }
  if (times.scheduled != never && times.first_token != never) {
    prefill_.observe(seconds_between(times.scheduled, times.first_token));
    const double decode_s = seconds_between(times.first_token, times.finished);
    decode_.observe(decode_s);
    if (usage.generated_tokens > 1) tpot_.observe(decode_s / static_cast<double>(usage.generated_tokens - 1));
  }
  prompt_tokens_.observe(static_cast<double>(usage.prompt_tokens));
  generation_tokens_.observe(static_cast<double>(usage.generated_tokens));
  if (request.max_tokens > 0) max_tokens_.observe(static_cast<double>(request.max_tokens));
  n_.observe(request.n);
}

std::string Metrics::render(const EngineStats& engine, const HttpStats& http) const {
  Families f(options_.prefix.empty() ? "" : options_.prefix + ":", {{"model_name", options_.model_name}, {"engine", "0"}});
  auto number = [](auto value) { return static_cast<double>(value); };
  // What no running sequence uses counts as free, cached or not, as in vLLM.
  const double used = number(engine.kv_blocks - engine.kv_free - engine.kv_cached);
  f.gauge("num_requests_running", "Sequences in the batch.", number(engine.running));
  f.gauge("num_requests_waiting", "Requests that wait to be scheduled.", number(engine.waiting));
  f.gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.",
          engine.kv_blocks > 0 ? std::clamp(used / number(engine.kv_blocks), 0.0, 1.0) : 0);
  f.counter("prompt_tokens_total", "Prompt tokens processed.", number(engine.prompt_tokens));
  f.counter("prompt_tokens_cached_total", "Prompt tokens taken from the prefix cache.", number(engine.cached_tokens));
  f.counter("generation_tokens_total", "Tokens generated.", number(engine.generated_tokens));
  f.counter("prefix_cache_queries_total", "Tokens looked up in the prefix cache.", number(engine.prefix_queries));
  f.counter("prefix_cache_hits_total", "Tokens found in the prefix cache.", number(engine.prefix_hits));
  f.counter("num_preemptions_total", "Sequences that were preempted.", number(engine.preemptions));
  f.family("request_success_total", "Requests that ended, by reason.", MetricType::Counter);
  for (size_t i = 0; i < kReasons; ++i) f.series(number(ended_[i].load()), {{"finished_reason", kReasonNames[i]}});
  f.counter("num_aborted_requests_total", "Requests cancelled or past their deadline.", number(ended_[2].load()));
  f.counter("spec_decode_num_drafts_total", "Drafts made by speculative decoding.", number(engine.drafts));
  f.counter("spec_decode_num_draft_tokens_total", "Tokens drafted.", number(engine.draft_tokens));
  f.counter("spec_decode_num_accepted_tokens_total", "Drafted tokens accepted.", number(engine.accepted_tokens));
  if (!engine.accepted_per_position.empty()) {
    f.family("spec_decode_num_accepted_tokens_per_pos_total", "Drafted tokens accepted, by position in the draft.", MetricType::Counter);
    for (size_t i = 0; i < engine.accepted_per_position.size(); ++i) {
      f.series(number(engine.accepted_per_position[i]), {{"position", std::to_string(i)}});
    }
  }
  f.histogram("time_to_first_token_seconds", "From arrival to the first token.", ttft_);
  f.histogram("inter_token_latency_seconds", "From one token of a sequence to the next.", itl_);
  f.histogram("request_time_per_output_token_seconds", "Mean time of a request's tokens after the first.", tpot_);
  f.histogram("e2e_request_latency_seconds", "From arrival to the end of a request.", e2e_);
  f.histogram("request_queue_time_seconds", "From arrival to the first step.", queue_);
  f.histogram("request_inference_time_seconds", "From the first step to the end.", inference_);
  f.histogram("request_prefill_time_seconds", "From the first step to the first token.", prefill_);
  f.histogram("request_decode_time_seconds", "From the first token to the end.", decode_);
  f.histogram("request_prompt_tokens", "Prompt tokens of a request.", prompt_tokens_);
  f.histogram("request_generation_tokens", "Generated tokens of a request.", generation_tokens_);
  f.histogram("request_params_max_tokens", "max_tokens of a request.", max_tokens_);
  f.histogram("request_params_n", "n of a request.", n_);
  f.histogram("iteration_tokens_total", "Tokens in one step of the engine.", iteration_tokens_);
  f.histogram("step_time_seconds", "From the end of one step to the end of the next.", step_);
  f.histogram("step_gap_seconds", "Of a step's time, how long the device waited for the host.", step_gap_);
  f.add("cache_config_info", "Configuration of the KV cache, as labels.", MetricType::Gauge, 1, options_.cache_config);
  f.gauge("startup_time_seconds", "From the start of the process to the first request that could be taken.", startup_s_.load());
  f.gauge("weight_load_duration_seconds", "Time taken to load the weights.", weight_load_s_.load());
  f.gauge("http_requests_active", "HTTP requests in progress.", number(http.requests_active.load()));
  f.gauge("http_connections", "Open HTTP connections.", number(http.connections.load()));
  f.counter("http_connections_total", "HTTP connections accepted.", number(http.accepted.load()));
  f.counter("http_requests_total", "HTTP requests received.", number(http.requests.load()));
  f.family("http_error_responses_total", "HTTP answers with an error status, by class.", MetricType::Counter);
  f.series(number(http.responses_4xx.load()), {{"class", "4xx"}});
  f.series(number(http.responses_5xx.load()), {{"class", "5xx"}});
  f.counter("http_client_closed_total", "Requests whose client went away before the end of the answer.", number(http.client_closed.load()));
  f.counter("http_slow_closed_total", "Connections closed because the client took nothing.", number(http.slow_closed.load()));

  f.without_prefix_and_labels();
  const ProcessFigures process = process_figures();
  f.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", process.resident_bytes);
  f.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", process.virtual_bytes);
  f.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", process.start_s);
  f.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", process.cpu_s);
  f.gauge("process_open_fds", "Number of open file descriptors.", process.open_fds);
  f.gauge("process_max_fds", "Maximum number of open file descriptors.", process.max_fds);
  return f.text();
}

}  // namespace dg
