// bench_model: what a model does without server, sampler and tokenizer: prefill of N tokens, and decode of B streams at a
// context of C tokens. Every stream gets random tokens of its own, in each step, so that experts are chosen as by different users.
//
//   bench_model MODEL [--format F] [--kv-cache-dtype D] [--backend B] [--threads N] [--isa I] [--dummy] [--prefill [Bx]N]... [--decode
//   BxC]...
//   [--tokens N]
//               [--tp N] [--ep] [--chunk N] [--rounds N] [--drafts N | --mtp N] [--json]
//   bench_model MODEL --interactive ...   reads `prefill N` and `decode BxC [TOKENS]` from standard input, one line each, and answers each
//                                         with one JSON line: what bench/peers interleaves with another program
//
// Bytes are weights and KV cache, and operations those of the step, counted by the dry backend (experts by chance); percentages are of
// `dougong bench machine`: bytes of read bandwidth, operations of the peak of the fastest type that the weights' format allows.
// The gap of a decode is what the device waited for the host between two steps: from the end of one, its tokens read, until it had the
// next. GB/s of prefill means little: it reads the weights once per chunk.
// With --drafts N every decode step verifies N drafts of each stream, with --mtp N the model's module makes new ones behind it, as a server
// does; tokens/s are those of drafts that are all wrong: one for each stream and step.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "app/open_model.h"
#include "backends/cpu/cpu.h"
#include "backends/cpu/machine_measure.h"
#include "base/json.h"
#include "base/memory.h"
#include "plan/sizing.h"
#include "quant/formats.h"

namespace {

using namespace dg;

constexpr int64_t kMaxStreams = 1024, kMaxContext = 1 << 20, kMaxTokens = 1 << 16;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Work {
  bool decode = false;
  int64_t streams = 1, context = 0;  // prefill: context tokens of each stream, one stream behind the other
  int64_t tokens = 0;                // decode steps; 0: --tokens
  std::string name() const {
    return decode        ? fmt::format("decode {}x{}", streams, context)
           : streams > 1 ? fmt::format("prefill {}x{}", streams, context)
                         : fmt::format("prefill {}", context);
  }
};

struct Arguments {
  std::string model;
  OpenOptions open;
  std::vector<Work> work;
  int64_t tokens = 64, chunk = 512, rounds = 5;
  // Rows behind a stream's last token that steps write to: drafts, and those that the module makes of them.
  int64_t spare() const { return 2 * open.draft_tokens; }
  bool json = false, interactive = false;
};

Result<int64_t> parse_count(std::string_view what, std::string_view text, int64_t max) {
  int64_t n = 0;
  auto parsed = std::from_chars(text.data(), text.data() + text.size(), n);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || n < 1 || n > max)
    return input_error(fmt::format("{}: expected a number from 1 to {}, found \"{}\"", what, max, text));
  return n;
}

Result<Work> parse_work(bool decode, std::string_view text) {
  const char* what = decode ? "decode" : "prefill";
  const size_t x = text.find('x');
  if (decode && x == std::string_view::npos)
    return input_error(fmt::format("decode: expected STREAMSxCONTEXT, such as 16x64, found \"{}\"", text));
  Work work{.decode = decode};
  if (x != std::string_view::npos) {
    DG_ASSIGN(work.streams, parse_count(fmt::format("{}: streams", what), text.substr(0, x), kMaxStreams));
  }
  DG_ASSIGN(work.context,
            parse_count(fmt::format("{}: context", what), x == std::string_view::npos ? text : text.substr(x + 1), kMaxContext));
  return work;
}

Result<Arguments> parse_arguments(int argc, char** argv) {
  Arguments out;
  out.open.progress = false;
  out.open.batch_invariant = false;  // as `dougong serve`
  out.open.load_text = false;
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--json") out.json = true;
    else if (name == "--interactive") out.interactive = true;
    else if (name == "--dummy") out.open.dummy_weights = true;
    else if (name == "--ep") out.open.expert_parallel = true;
    else if (!name.starts_with("--") && out.model.empty()) out.model = name;
    else if (i + 1 == argc) return input_error(fmt::format("{}: expected a value behind it, or it is unknown", name));
    else {
      const std::string value = argv[++i];
      if (name == "--format") out.open.quantization = value;
      else if (name == "--kv-cache-dtype") out.open.kv_cache_dtype = value;
      else if (name == "--isa") out.open.isa = value;
      else if (name == "--backend") out.open.backend = value;
      else if (name == "--threads") {
        DG_ASSIGN(const int64_t threads, parse_count(name, value, 1024));
        out.open.threads = static_cast<int>(threads);
      } else if (name == "--tp") {
        DG_ASSIGN(const int64_t ranks, parse_count(name, value, 64));
        out.open.tensor_parallel = static_cast<int>(ranks);
      } else if (name == "--tokens") {
        DG_ASSIGN(out.tokens, parse_count(name, value, kMaxTokens));
      } else if (name == "--chunk") {
        DG_ASSIGN(out.chunk, parse_count(name, value, kMaxTokens));
      } else if (name == "--rounds") {
        DG_ASSIGN(out.rounds, parse_count(name, value, 1000));
      } else if (name == "--drafts" || name == "--mtp") {
        DG_ASSIGN(out.open.draft_tokens, parse_count(name, value, 16));
        out.open.mtp_drafts = name == "--mtp";
      } else if (name == "--prefill") {
        DG_ASSIGN(Work work, parse_work(false, value));
        out.work.push_back(work);
      } else if (name == "--decode") {
        DG_ASSIGN(Work work, parse_work(true, value));
        out.work.push_back(work);
      } else {
        return input_error(fmt::format("{}: unknown option; see the head of bench/model/bench_model.cpp", name));
      }
    }
  }
  if (out.model.empty()) return input_error("expected a model: a directory or a .gguf file");
  if (out.work.empty()) out.work = {{.context = 512}, {.decode = true, .context = 64}, {.decode = true, .streams = 16, .context = 64}};
  return out;
}

// The opened model with the sequences of the last decode, so that another round of the same needs no new prefill.
class Bench {
 public:
  static Result<std::unique_ptr<Bench>> create(const Arguments& arguments) {
    auto bench = std::unique_ptr<Bench>(new Bench(arguments));
    OpenOptions open = arguments.open;
    open.max_step_tokens = arguments.chunk;
    // One pool for the largest decode of the list, whatever its shape, and beside it for the longest prefill.
    int64_t decode_tokens = 0, prefill_tokens = 0;
    for (const Work& w : arguments.work) {
      bench->longest_ = std::max(bench->longest_, w.context + steps(arguments, w) + arguments.spare());
      const int64_t held = w.decode ? w.streams : 1;  // streams whose cache is there at the same time
      open.max_sequences = std::max(open.max_sequences, held);
      int64_t& tokens = w.decode ? decode_tokens : prefill_tokens;
      tokens = std::max(tokens, held * (w.context + steps(arguments, w) + arguments.spare() + open.block_tokens));
    }
    if (decode_tokens > 0 && prefill_tokens > 0) open.max_sequences++;  // the streams of a decode stay while a prefill runs
    open.max_logit_rows = open.max_decode_rows = open.max_sequences * (1 + open.draft_tokens);
    open.max_step_tokens = std::max(open.max_step_tokens, open.max_decode_rows);
    open.max_model_len = bench->longest_;
    // Only as much cache as that work needs, not max_sequences times the longest context: its bytes are found on the dry backend.
    DG_ASSIGN(open.kv_bytes, cache_bytes(arguments, decode_tokens + prefill_tokens + open.block_tokens));
    const bool host = open.backend != "cuda" && open.backend != "auto";
    if (const int64_t free = read_memory_info().available_bytes;
        host && static_cast<double>(open.kv_bytes) > 0.8 * static_cast<double>(free))
      return resource_error(
          fmt::format("--decode: the KV cache of {} streams needs {}, more than 80 % of the {} that are free; ask for less",
                      open.max_sequences, format_bytes(open.kv_bytes), format_bytes(free)));
    DG_ASSIGN(bench->opened_, open_model(arguments.model, open));
    bench->limits_ = bench->opened_->backend->measure();
    bench->device_ = !bench->limits_.peaks.empty();
    if (!bench->device_) {
      DG_ASSIGN(bench->limits_, machine_limits(arguments.open.threads));
    }
    bench->isa_ = bench->device_                 ? bench->limits_.peaks[0].isa
                  : arguments.open.isa == "auto" ? usable_cpu_isas().front()
                                                 : arguments.open.isa;
    int64_t most = 0;
    for (const auto& [name, bytes] : bench->opened_->store->bytes_by_format())
      if (bytes > most) {
        most = bytes;
        bench->format_ = find_format(name);
      }
    return bench;
  }

  // Of the last round, if it was a decode: from the end of a step, its tokens read, until the device had the next. Median, microseconds.
  double gap_us() const {
    std::vector<double> sorted = gaps_;
    std::sort(sorted.begin(), sorted.end());
    return sorted.empty() ? 0 : sorted[sorted.size() / 2] * 1e6;
  }

  // Seconds of one round.
  Result<double> run(const Work& work) {
    if ((work.decode && work.streams > executor().options().max_step_sequences) ||
        work.context + steps(arguments_, work) + arguments_.spare() > longest_)
      return input_error(fmt::format("{}: more than the largest of --prefill and --decode that the cache was made for", work.name()));
    return work.decode ? run_decode(work) : run_prefill(work);
  }

  Json report(const Work& work, std::vector<double> seconds, double gap_us) const {
    const double n = static_cast<double>(work.decode ? work.streams * steps(arguments_, work) : work.streams * work.context);
    const double step_count = static_cast<double>(work.decode ? steps(arguments_, work) : work.streams);
    const Cost cost = step_cost(work);
    std::vector<double> rates;
    for (double s : seconds) rates.push_back(n / s);
    const Measured rate = measured(rates);
    const double per_s = rate.median / n;  // rounds per second
    const double bytes = (cost.weight_bytes + cost.kv_bytes) * step_count, flops = cost.flops * step_count;
    const MathType type = format_ ? math_type_of(*format_) : MathType::kF32;
    // A device's products are of bf16, and of FP8 where many rows meet such weights.
    const bool fp8 = device_ && !work.decode && format_ && std::string_view(format_->name) == "fp8_block" && limits_.roofline(isa_).fp8 > 0;
    const MathType multiplied = fp8 ? MathType::kFp8 : device_ ? MathType::kBf16 : type;
    const double peak = limits_.roofline(isa_).operations_per_s(multiplied), read = limits_.read_bytes_per_s();
    return {{"work", work.name()},
            {"decode", work.decode},
            {"streams", work.streams},
            {"context", work.context},
            {"tokens", n},
            {"tokens_per_s", rate.median},
            {"low", rate.low},
            {"high", rate.high},
            {"samples", rates},
            {"step_bytes", cost.weight_bytes + cost.kv_bytes},
            {"bytes_per_s", bytes * per_s},
            {"flops_per_s", flops * per_s},
            {"of_read", read > 0 ? bytes * per_s / read : 0},
            {"of_peak", peak > 0 ? flops * per_s / peak : 0},
            {"peak_type", math_type_name(multiplied)},
            {"gap_us", gap_us}};
  }

  Json header() const {
    return {{"model", opened_->path},
            {"backend", opened_->backend->description()},
            {"format", format_ ? format_->name : ""},
            {"weight_bytes", opened_->store->bytes()},
            {"load_s", opened_->load_seconds},
            {"cpu", limits_.cpu},
            {"limits", limits_.summary(isa_)}};
  }

 private:
  explicit Bench(const Arguments& arguments) : arguments_(arguments) {}
  static int64_t steps(const Arguments& arguments, const Work& work) {
    return !work.decode ? 0 : work.tokens > 0 ? work.tokens : arguments.tokens;
  }
  Executor& executor() { return *opened_->executor; }

  static Result<int64_t> cache_bytes(const Arguments& arguments, int64_t tokens) {
    DG_ASSIGN(const std::string path, resolve_model(arguments.model));
    DG_ASSIGN(const ModelConfig config, read_model_config(path));
    DG_ASSIGN(const Dtype dtype, kv_cache_dtype(arguments.open));
    DryBackend dry;
    WeightStore store(dry, nullptr, {}, find_format("bf16"));
    DG_ASSIGN(std::unique_ptr<Model> model, make_model(config, store));
    CacheLayout layout;
    model->register_cache(layout);
    const int64_t block = arguments.open.block_tokens;
    return (tokens + block - 1) / block * block * layout.bytes_per_token(dtype);
  }

  // Of the prefill of one stream as a whole, or of the middle one of the decode steps.
  Cost step_cost(const Work& work) const {
    const Dtype dtype = opened_->executor->options().kv_dtype;
    Model& model = *opened_->model;
    if (work.decode)
      return dry_run_step(model,
                          {.tokens = work.streams * width(),
                           .sequences = work.streams,
                           .kv_len = work.context + steps(arguments_, work) / 2 + 1,
                           .logit_rows = work.streams * width(),
                           .decode = true,
                           .mtp = opened_->executor->options().mtp_drafts},
                          dtype)
          .total;
    Cost total;
    for (int64_t at = 0; at < work.context; at += arguments_.chunk) {
      const int64_t n = std::min(arguments_.chunk, work.context - at);
      total +=
          dry_run_step(model, {.tokens = n, .sequences = 1, .kv_len = at + n, .logit_rows = at + n == work.context ? 1 : 0}, dtype).total;
    }
    return total;
  }

  void random_ids(std::vector<int32_t>& ids, int64_t n) {
    ids.resize(static_cast<size_t>(n));
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % static_cast<uint64_t>(opened_->config.vocab));
  }

  Result<void> fill(BlockTable& blocks, int64_t context) {
    std::vector<int32_t> ids;
    for (int64_t at = 0; at < context; at += arguments_.chunk) {
      const int64_t n = std::min(arguments_.chunk, context - at);
      random_ids(ids, n);
      const StepSequence sequence{
          .ids = ids, .first_position = at, .blocks = &blocks, .logits = at + n == context ? LogitsWanted::kLast : LogitsWanted::kNone};
      DG_TRY(executor().run(std::span(&sequence, 1)));
    }
    return {};
  }

  Result<double> run_prefill(const Work& work) {
    const double begin = now_s();
    for (int64_t i = 0; i < work.streams; i++) {
      BlockTable blocks(executor().kv());
      DG_TRY(fill(blocks, work.context));
    }
    return now_s() - begin;
  }

  // As a server does for greedy requests, where the device picks; elsewhere rows of logits are read for nothing.
  static void pick_greedily(const StepResult& result, DevicePicks& picks) {
    static const SamplingParams greedy;
    for (int64_t row = 0; row < result.logits.rows(); row++) picks.add(row, {.params = &greedy});
  }

  int64_t width() const { return 1 + opened_->executor->options().draft_tokens; }

  // The module's passes behind a step: one over its rows, and one more for each further draft.
  Result<void> make_drafts(std::vector<StepSequence> sequences, const StepResult& step, double* waited) {
    for (StepSequence& s : sequences) s.logits = LogitsWanted::kRow, s.logit_row = width() - 1;
    DG_ASSIGN(StepResult draft, executor().run_mtp(sequences, step.hidden, pick_greedily));
    *waited += executor().waited_s();
    for (int64_t depth = 1; depth + 1 < width(); depth++) {
      std::vector<int32_t> rows;
      for (size_t i = 0; i < sequences.size(); i++) {
        StepSequence& s = sequences[i];
        rows.push_back(static_cast<int32_t>(draft.first_hidden[i] + (depth == 1 ? width() - 1 : 0)));
        s.first_position += static_cast<int64_t>(s.ids.size());
        s.ids = s.ids.first(1);
        s.logits = LogitsWanted::kLast;
      }
      DG_ASSIGN(draft, executor().run_mtp_again(sequences, draft.hidden, rows, pick_greedily));
      *waited += executor().waited_s();
    }
    return {};
  }

  Result<double> run_decode(const Work& work) {
    if (static_cast<int64_t>(tables_.size()) != work.streams || filled_ != work.context) {
      tables_.clear();
      for (int64_t i = 0; i < work.streams; i++) {
        tables_.emplace_back(executor().kv());
        DG_TRY(fill(tables_.back(), work.context));
      }
      filled_ = work.context;
    }
    std::vector<StepSequence> sequences(tables_.size());
    std::vector<int32_t> ids;
    gaps_.clear();
    const int64_t count = steps(arguments_, work);
    const double begin = now_s();
    for (int64_t step = 0; step < count; step++) {
      random_ids(ids, work.streams * width());
      const auto rows = static_cast<size_t>(width());
      for (size_t i = 0; i < sequences.size(); i++)
        sequences[i] = {.ids = std::span(ids).subspan(i * rows, rows),
                        .first_position = work.context + step,
                        .blocks = &tables_[i],
                        .decode = true,
                        .logits = LogitsWanted::kAll};
      DG_ASSIGN(const StepResult result, executor().run(sequences, pick_greedily));
      double waited = executor().waited_s();
      if (executor().options().mtp_drafts) DG_TRY(make_drafts(sequences, result, &waited));
      if (step > 0) gaps_.push_back(waited);
    }
    const double seconds = now_s() - begin;
    for (BlockTable& table : tables_) table.truncate(work.context);
    return seconds;
  }

  const Arguments& arguments_;
  std::unique_ptr<OpenedModel> opened_;
  std::vector<BlockTable> tables_;  // of the last decode; destroyed before the pool they give their blocks back to
  std::vector<double> gaps_;        // of the last decode
  int64_t filled_ = 0, longest_ = 0;
  MachineLimits limits_;
  bool device_ = false;  // limits_ are of the backend's device, whose products are of bf16
  std::string isa_;
  const Format* format_ = nullptr;
  std::mt19937_64 random_{1};
};

void print_line(const Json& json) {
  fmt::print("{}\n", json.dump());
  std::fflush(stdout);
}

Result<int> interactive(Bench& bench) {
  print_line(bench.header());
  std::string line;
  while (std::getline(std::cin, line)) {
    const size_t blank = line.find(' ');
    const std::string verb = line.substr(0, blank);
    std::string_view rest = blank == std::string::npos ? std::string_view() : std::string_view(line).substr(blank + 1);
    Work work;
    if (verb == "prefill") {
      DG_ASSIGN(work, parse_work(false, rest));
    } else if (verb == "decode") {
      const size_t second = rest.find(' ');
      DG_ASSIGN(work, parse_work(true, rest.substr(0, second)));
      if (second != std::string_view::npos) {
        DG_ASSIGN(work.tokens, parse_count("decode: tokens", rest.substr(second + 1), kMaxTokens));
      }
    } else {
      return input_error(fmt::format("standard input: expected `prefill N` or `decode BxC [TOKENS]`, found \"{}\"", line));
    }
    DG_ASSIGN(const double seconds, bench.run(work));
    print_line(bench.report(work, {seconds}, work.decode ? bench.gap_us() : 0));
  }
  return 0;
}

Result<int> run(int argc, char** argv) {
  DG_ASSIGN(const Arguments arguments, parse_arguments(argc, argv));
  DG_ASSIGN(std::unique_ptr<Bench> bench, Bench::create(arguments));
  if (arguments.interactive) return interactive(*bench);
  const Json header = bench->header();
  if (!arguments.json)
    fmt::print("{}, {}, weights {:.2f} GB ({}), loaded in {:.2f} s\n{}\n\n{:<16} {:>10}  {:<22} {:>8} {:>8} {:>9} {:>8} {:>8}\n",
               header["model"].get<std::string>(), header["backend"].get<std::string>(), header["weight_bytes"].get<double>() * 1e-9,
               header["format"].get<std::string>(), header["load_s"].get<double>(), header["limits"].get<std::string>(), "work", "tokens/s",
               "lowest - highest", "GB/s", "of read", "TFLOP/s", "of peak", "gap us");
  std::vector<std::vector<double>> seconds(arguments.work.size()), gaps(arguments.work.size());
  // Rounds are interleaved, so that a busy minute of the machine does not fall on one line alone. The first one is for caches and pages.
  for (int64_t round = 0; round <= arguments.rounds; round++)
    for (size_t i = 0; i < arguments.work.size(); i++) {
      DG_ASSIGN(const double s, bench->run(arguments.work[i]));
      if (round > 0) seconds[i].push_back(s), gaps[i].push_back(arguments.work[i].decode ? bench->gap_us() : 0);
    }
  Json results = Json::array();
  for (size_t i = 0; i < arguments.work.size(); i++) {
    const Json r = bench->report(arguments.work[i], seconds[i], measured(gaps[i]).median);
    results.push_back(r);
    if (!arguments.json)
      fmt::print("{:<16} {:>10.2f}  {:<22} {:>8.2f} {:>7.0f}% {:>9.3f} {:>7.1f}% {:>8}\n", r["work"].get<std::string>(),
                 r["tokens_per_s"].get<double>(), fmt::format("{:.2f} - {:.2f}", r["low"].get<double>(), r["high"].get<double>()),
                 r["bytes_per_s"].get<double>() * 1e-9, 100 * r["of_read"].get<double>(), r["flops_per_s"].get<double>() * 1e-12,
                 100 * r["of_peak"].get<double>(), arguments.work[i].decode ? fmt::format("{:.1f}", r["gap_us"].get<double>()) : "-");
  }
  if (arguments.json) {
    Json out = header;
    out["results"] = results;
    print_line(out);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  auto result = run(argc, argv);
  if (result.ok()) return *result;
  fmt::print(stderr, "bench_model: {}\n", result.error().message);
  return exit_code(result.error().kind);
}
