#include "app/eval_compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "app/terminal.h"
#include "base/json.h"
#include "base/memory.h"
#include "quant/formats.h"

namespace dg {
namespace {

struct Compared {
  std::string name;
  size_t weight_bytes = 0;
  std::optional<Divergence> divergence;  // of the text
  std::optional<SuiteReport> suite;
};

bool is_dtype(const std::string& name) { return name == "float32" || name == "bfloat16" || name == "float16"; }

// Differences are meaningless when both see different tokens.
Result<void> check_same_tokens(const OpenedModel& a, const OpenedModel& b, const std::vector<TextMode>& modes_a,
                               const std::vector<TextMode>& modes_b) {
  bool same = a.config.vocab == b.config.vocab && modes_a.size() == modes_b.size();
  for (size_t i = 0; same && i < modes_a.size(); i++) same = modes_a[i].sequences == modes_b[i].sequences;
  if (same) return {};
  return input_error(
      fmt::format("--compare {}: its tokens differ from those of {} (vocabularies of {} and {}); only models of one tokenizer "
                  "can be compared",
                  b.path, a.path, b.config.vocab, a.config.vocab));
}

Json compared_json(const Compared& c, const Compared& reference) {
  Json json = {{"name", c.name}, {"weight_bytes", c.weight_bytes}};
  if (c.divergence) {
    const Divergence& d = *c.divergence;
    json["tokens"] = d.tokens;
    json["mean_kl"] = d.mean_kl;
    json["p99_kl"] = d.p99_kl;
    json["max_kl"] = d.max_kl;
    json["top1_agreement"] = d.agreement_percent();
    json["perplexity"] = d.candidate.value();
  }
  if (c.suite) {
    json["accuracy"] = c.suite->total.percent();
    json["judged"] = c.suite->total.judged;
    if (reference.suite) json["accuracy_difference"] = c.suite->total.percent() - reference.suite->total.percent();
  }
  return json;
}

std::string table_row(const Compared& c, const Compared& reference, double reference_perplexity) {
  const bool is_reference = &c == &reference;
  std::string row = fmt::format("{:<20} {:>10}", c.name, format_bytes(static_cast<int64_t>(c.weight_bytes)));
  if (reference_perplexity > 0) {
    if (is_reference) row += fmt::format(" {:>11} {:>11} {:>11} {:>11.4f}", "", "", "", reference_perplexity);
    else if (const auto& d = c.divergence; d)
      row += fmt::format(" {:>11.6f} {:>11.6f} {:>10.2f}% {:>11.4f}", d->mean_kl, d->p99_kl, d->agreement_percent(), d->candidate.value());
  }
  if (c.suite) {
    row += fmt::format(" {:>9.2f}%", c.suite->total.percent());
    if (!is_reference) row += fmt::format(" {:>+8.2f}", c.suite->total.percent() - reference.suite->total.percent());
  }
  return row + "\n";
}

}  // namespace

double kl_of_logits(std::span<const float> p, std::span<const float> q) {
  const float p_top = *std::max_element(p.begin(), p.end()), q_top = *std::max_element(q.begin(), q.end());
  double p_sum = 0, q_sum = 0, weighted = 0;
  // sum p (log p - log q) with log p = x - p_top - log p_sum: the normalisers come out of the sum.
  for (size_t i = 0; i < p.size(); i++) {
    const float x = p[i] - p_top, y = q[i] - q_top;
    const double e = static_cast<double>(std::exp(x));
    p_sum += e;
    q_sum += static_cast<double>(std::exp(y));
    if (e > 0) weighted += e * (static_cast<double>(x) - static_cast<double>(y));
  }
  const double kl = weighted / p_sum - std::log(p_sum) + std::log(q_sum);
  return kl < 0 ? 0 : kl;  // rounding; a NaN stays one
}

Result<Divergence> measure_divergence(Executor& reference, Executor& candidate, const std::vector<std::vector<int32_t>>& sequences,
                                      int64_t max_context, const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel) {
  Divergence d;
  std::vector<float> kls;
  std::vector<double> kl_of(sequences.size()), reference_nll(sequences.size()), candidate_nll(sequences.size());
  Executor* both[] = {&reference, &candidate};
  DG_TRY(run_sequences(
      both, sequences, max_context,
      [&](size_t sequence, size_t t, LogitRows logits) {
        const double kl = kl_of_logits(logits[0], logits[1]);
        const int32_t target = sequences[sequence][t + 1];
        kl_of[sequence] += kl;
        kls.push_back(static_cast<float>(kl));
        reference_nll[sequence] += negative_log_likelihood(logits[0], target);
        candidate_nll[sequence] += negative_log_likelihood(logits[1], target);
        auto top = [](std::span<const float> row) { return std::max_element(row.begin(), row.end()) - row.begin(); };
        d.same_top += top(logits[0]) == top(logits[1]);
      },
      progress, cancel));
  d.tokens = d.reference.tokens = d.candidate.tokens = static_cast<int64_t>(kls.size());
  double total = 0;
  for (size_t i = 0; i < sequences.size(); i++) {
    total += kl_of[i];
    d.reference.nll += reference_nll[i];
    d.candidate.nll += candidate_nll[i];
  }
  if (!std::isfinite(total))
    return input_error("the logits are not numbers (NaN): the weights are damaged, or the format cannot hold them");
  if (kls.empty()) return d;
  d.mean_kl = total / static_cast<double>(kls.size());
  std::sort(kls.begin(), kls.end());
  d.max_kl = kls.back();
  d.p99_kl = kls[std::min(kls.size() - 1, kls.size() * 99 / 100)];
  return d;
}

Result<std::vector<CompareItem>> parse_compare(const std::string& text, const std::string& path, const OpenOptions& open) {
  std::vector<CompareItem> items;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    CompareItem item{.name = text.substr(begin, end - begin), .path = path, .open = open};
    begin = end + 1;
    if (item.name.empty()) return input_error(fmt::format("--compare: expected FORMAT|MODEL[,...], found {}", in_quotes(text)));
    if (is_dtype(item.name)) {
      item.open.dtype = item.name;
      item.open.quantization.clear();
    } else if (find_format(item.name)) {
      if (item.open.dtype == "float32") item.open.dtype = "auto";
      item.open.quantization = item.name;
    } else if (auto other = resolve_model(item.name); other.ok()) {
      item.path = *other;
    } else {
      return input_error(fmt::format("--compare {}: neither a weight format ({}, float32, bfloat16, float16) nor a model: {}",
                                     in_quotes(item.name), format_names(), other.error().message));
    }
    item.open.profile = false;  // it is the reference's
    items.push_back(std::move(item));
  }
  return items;
}

Result<int> run_eval_compare(const Options& options, const std::string& path, const OpenOptions& open,
                             const std::vector<EvalQuestion>& questions, const std::string& suite_path, const std::string& text,
                             const std::atomic<bool>* cancel) {
  if (options.given("output")) return input_error("--compare and --output contradict each other: write the answers of one model at a time");
  DG_ASSIGN(std::vector<CompareItem> items, parse_compare(options.text("compare"), path, open));
  DG_ASSIGN(std::unique_ptr<OpenedModel> reference, open_model(path, open));
  std::string name = !open.quantization.empty() ? open.quantization : open.dtype == "auto" ? "as published" : open.dtype;
  std::vector<Compared> rows;
  rows.reserve(items.size() + 1);
  rows.push_back({.name = name, .weight_bytes = static_cast<size_t>(reference->store->bytes())});
  std::vector<TextMode> modes;
  if (!text.empty()) {
    DG_ASSIGN(modes, text_modes(options, *reference, text));
  }
  if (!questions.empty()) {
    DG_ASSIGN(rows[0].suite, run_suite(options, *reference, questions, suite_path, cancel));
  }
  double reference_perplexity = 0;
  EvalCounter counter(!options.flag("quiet"));
  for (const CompareItem& item : items) {
    DG_ASSIGN(std::unique_ptr<OpenedModel> candidate, open_model(item.path, item.open));
    Compared row{.name = item.name, .weight_bytes = static_cast<size_t>(candidate->store->bytes())};
    if (!modes.empty()) {
      DG_ASSIGN(std::vector<TextMode> theirs, text_modes(options, *candidate, text));
      DG_TRY(check_same_tokens(*reference, *candidate, modes, theirs));
      const int64_t context = std::min(max_context(*reference), max_context(*candidate));
      auto progress = [&](int64_t done) { counter.show(fmt::format("{}: {} tokens", item.name, done)); };
      // The first mode is per_document where documents are marked: the way the model is used.
      DG_ASSIGN(row.divergence,
                measure_divergence(*reference->executor, *candidate->executor, modes[0].sequences, context, progress, cancel));
      reference_perplexity = row.divergence->reference.value();
    }
    if (!questions.empty()) {
      DG_ASSIGN(row.suite, run_suite(options, *candidate, questions, suite_path, cancel));
    }
    rows.push_back(std::move(row));
  }
  if (options.flag("json")) {
    Json list = Json::array();
    for (size_t i = 1; i < rows.size(); i++) list.push_back(compared_json(rows[i], rows[0]));
    Json base = compared_json(rows[0], rows[0]);
    if (reference_perplexity > 0) base["perplexity"] = reference_perplexity;
    print_output(json_line({{"model", path}, {"reference", std::move(base)}, {"compare", std::move(list)}}));
    return 0;
  }
  std::string out = fmt::format("{:<20} {:>10}", "weights", "bytes");
  if (reference_perplexity > 0) out += fmt::format(" {:>11} {:>11} {:>11} {:>11}", "mean KL", "99 % KL", "same top-1", "perplexity");
  if (!questions.empty()) out += fmt::format(" {:>10} {:>8}", "accuracy", "points");
  out += "\n";
  for (const Compared& row : rows) out += table_row(row, rows[0], reference_perplexity);
  if (reference_perplexity > 0) {
    int64_t tokens = 0;
    for (const Compared& row : rows)
      if (row.divergence) tokens = row.divergence->tokens;
    out += fmt::format("KL in nats against {}, over {} tokens ({})", rows[0].name, tokens, modes[0].name);
    out += questions.empty() ? "\n" : fmt::format("; {} questions judged\n", rows[0].suite->total.judged);
  }
  print_output(out);
  return 0;
}

}  // namespace dg
