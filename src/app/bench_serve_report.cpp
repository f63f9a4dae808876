// Figures of a load run, as JSON with the keys of `vllm bench serve --save-result` and as a table for people.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "app/bench_serve.h"
#include "base/json.h"

namespace dg {
namespace {

// Linear interpolation between the two nearest values, as numpy does; `sorted` is not empty.
double percentile(const std::vector<double>& sorted, double percent) {
  const double at = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

double per_second(int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0; }

struct NamedFigure {
  const char* key;
  const char* title;
  const BenchFigure& figure;
};
std::vector<NamedFigure> figures_of(const BenchReport& report) {
  return {{"ttft", "time to first token", report.ttft_s},
          {"tpot", "time per output token", report.tpot_s},
          {"itl", "inter-token latency", report.itl_s},
          {"e2el", "end-to-end latency", report.e2el_s}};
}

}  // namespace

BenchFigure bench_figure(std::vector<double> values) {
  BenchFigure out;
  if (values.empty()) return out;
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  for (double v : values) out.mean += v / n;
  double variance = 0;
  for (double v : values) variance += (v - out.mean) * (v - out.mean) / n;
  out.std = std::sqrt(variance);
  out.median = percentile(values, 50);
  out.p99 = percentile(values, 99);
  return out;
}

BenchReport make_bench_report(const BenchRun& run) {
  BenchReport report;
  report.duration_s = run.duration_s;
  report.requests = static_cast<int64_t>(run.outcomes.size());
  std::vector<double> ttft, tpot, itl, e2el;
  for (const BenchOutcome& o : run.outcomes) {
    switch (o.kind) {
      case BenchOutcome::kNotRun:
      case BenchOutcome::kCancelled: report.cancelled++; continue;
      case BenchOutcome::kDisconnected: report.disconnected++; continue;
      case BenchOutcome::kFailed:
        report.failed++;
        report.errors[o.error_kind]++;
        report.error_examples.try_emplace(o.error_kind, o.error);
        continue;
      case BenchOutcome::kCompleted: break;
    }
    report.completed++;
    report.input_tokens += o.prompt_tokens;
    report.output_tokens += o.output_tokens;
    if (o.latency_s <= 0) continue;  // an answer without any text has no times
    ttft.push_back(o.ttft_s);
    e2el.push_back(o.latency_s);
    if (o.output_tokens > 1) tpot.push_back((o.latency_s - o.ttft_s) / static_cast<double>(o.output_tokens - 1));
    itl.insert(itl.end(), o.itl_s.begin(), o.itl_s.end());
  }
  report.ttft_s = bench_figure(std::move(ttft));
  report.tpot_s = bench_figure(std::move(tpot));
  report.itl_s = bench_figure(std::move(itl));
  report.e2el_s = bench_figure(std::move(e2el));
  return report;
}

Json bench_report_json(const BenchReport& report) {
  Json out = {{"duration", report.duration_s},
              {"completed", report.completed},
              {"failed", report.failed},
              {"disconnected", report.disconnected},
              {"cancelled", report.cancelled},
              {"total_input_tokens", report.input_tokens},
              {"total_output_tokens", report.output_tokens},
              {"request_throughput", per_second(report.completed, report.duration_s)},
              {"output_throughput", per_second(report.output_tokens, report.duration_s)},
              {"total_token_throughput", per_second(report.input_tokens + report.output_tokens, report.duration_s)}};
  for (const NamedFigure& named : figures_of(report)) {
    out[fmt::format("mean_{}_ms", named.key)] = named.figure.mean * 1e3;
    out[fmt::format("median_{}_ms", named.key)] = named.figure.median * 1e3;
    out[fmt::format("std_{}_ms", named.key)] = named.figure.std * 1e3;
    out[fmt::format("p99_{}_ms", named.key)] = named.figure.p99 * 1e3;
  }
  out["errors"] = Json::object();
  out["error_examples"] = Json::object();
  for (const auto& [kind, count] : report.errors) out["errors"][kind] = count;
  for (const auto& [kind, example] : report.error_examples) out["error_examples"][kind] = example;
  return out;
}

std::string bench_report_table(const BenchReport& report) {
  std::string out;
  auto count = [&out](const char* name, int64_t n) { out += fmt::format("{:<28}{:>12}\n", name, n); };
  auto rate = [&out](const char* name, double v, const char* unit) { out += fmt::format("{:<28}{:>12.2f} {}\n", name, v, unit); };
  count("completed requests", report.completed);
  if (report.failed > 0) count("failed requests", report.failed);
  if (report.disconnected > 0) count("disconnected by the client", report.disconnected);
  if (report.cancelled > 0) count("cancelled or not begun", report.cancelled);
  rate("duration", report.duration_s, "s");
  count("input tokens", report.input_tokens);
  count("output tokens", report.output_tokens);
  rate("requests", per_second(report.completed, report.duration_s), "/s");
  rate("output tokens", per_second(report.output_tokens, report.duration_s), "/s");
  rate("all tokens", per_second(report.input_tokens + report.output_tokens, report.duration_s), "/s");
  out += fmt::format("\n{:<28}{:>12}{:>12}{:>12}{:>12}\n", "milliseconds", "mean", "median", "std", "p99");
  for (const NamedFigure& named : figures_of(report))
    out += fmt::format("{:<28}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}\n", named.title, named.figure.mean * 1e3, named.figure.median * 1e3,
                       named.figure.std * 1e3, named.figure.p99 * 1e3);
  for (const auto& [kind, n] : report.errors) out += fmt::format("\n{} failed ({}): {}", n, kind, report.error_examples.at(kind));
  return report.errors.empty() ? out : out + '\n';
}

}  // namespace dg
