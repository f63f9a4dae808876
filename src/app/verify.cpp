#include "app/verify.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "backends/checked/checked.h"
#include "base/file.h"

namespace dg {
namespace {

struct Reference {
  std::string name;
  std::vector<int32_t> ids, greedy;
  std::vector<float> logits;               // (tokens, vocab)
  std::vector<std::vector<float>> hidden;  // [layer] (tokens, hidden)
};

template <class T>
Result<std::vector<T>> read_tensor(const TensorIndex& index, const std::string& name, Dtype dtype, std::vector<int64_t> shape) {
  const TensorInfo* info = index.find(name);
  const std::string& path = index.file(0).path();
  if (!info) return input_error(fmt::format("{}: tensor {} is missing", path, name));
  int64_t count = 1;
  for (int64_t d : info->shape) count *= d;
  bool fits = info->shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); i++) fits = shape[i] < 0 || shape[i] == info->shape[i];
  if (info->dtype != dtype || !fits)
    return input_error(fmt::format("{}: tensor {}: unexpected dtype {} or shape for this model (rank {}, {} elements)", path, name,
                                   dtype_name(info->dtype), info->shape.size(), count));
  std::vector<T> values(static_cast<size_t>(count));
  DG_TRY(index.file(info->file).read_into(info->offset, std::as_writable_bytes(std::span(values))));
  return values;
}

Result<std::vector<Reference>> read_references(const std::string& directory, const ModelConfig& config) {
  DG_ASSIGN(TensorIndex index, TensorIndex::open(directory + "/reference.safetensors"));
  std::vector<Reference> references;
  for (const TensorInfo& info : index.tensors()) {
    constexpr std::string_view kIds = ".input_ids";
    if (!info.name.ends_with(kIds)) continue;
    Reference r;
    r.name = info.name.substr(0, info.name.size() - kIds.size());
    DG_ASSIGN(r.ids, read_tensor<int32_t>(index, info.name, Dtype::kI32, {-1}));
    auto tokens = static_cast<int64_t>(r.ids.size());
    if (tokens == 0)
      return input_error(fmt::format("{}/reference.safetensors: tensor {}: expected at least one token", directory, info.name));
    for (int32_t id : r.ids)
      if (id < 0 || id >= config.vocab)
        return input_error(fmt::format("{}/reference.safetensors: tensor {}: token id {} is outside the vocabulary of {}", directory,
                                       info.name, id, config.vocab));
    DG_ASSIGN(r.logits, read_tensor<float>(index, r.name + ".logits", Dtype::kF32, {tokens, config.vocab}));
    for (int64_t layer = 0; layer <= config.layers; layer++) {
      std::string name = fmt::format("{}.hidden.{}", r.name, layer);
      if (!index.find(name)) break;
      DG_ASSIGN(std::vector<float> hidden, read_tensor<float>(index, name, Dtype::kF32, {tokens, config.hidden}));
      r.hidden.push_back(std::move(hidden));
    }
    if (index.find(r.name + ".greedy")) {
      DG_ASSIGN(r.greedy, read_tensor<int32_t>(index, r.name + ".greedy", Dtype::kI32, {-1}));
    }
    references.push_back(std::move(r));
  }
  if (references.empty())
    return input_error(
        fmt::format("{}/reference.safetensors: no prompt found: expected tensors such as p1.input_ids and p1.logits", directory));
  std::sort(references.begin(), references.end(), [](const Reference& a, const Reference& b) { return a.name < b.name; });
  return references;
}

struct Prefill {
  std::vector<float> logits;
  std::vector<std::vector<float>> hidden;
};

Result<Prefill> prefill(Executor& executor, const std::vector<int32_t>& ids, int64_t chunk, BlockTable& blocks) {
  Prefill out;
  executor.set_observer([&](int layer, Tensor x) {
    if (static_cast<size_t>(layer) >= out.hidden.size()) out.hidden.resize(static_cast<size_t>(layer) + 1);
    auto& to = out.hidden[static_cast<size_t>(layer)];
    const size_t before = to.size();
    to.resize(before + static_cast<size_t>(x.elements()));
    executor.backend().download(to.data() + before, x.data, x.bytes());
  });
  Result<void> done;
  for (size_t at = 0; at < ids.size() && done.ok(); at += static_cast<size_t>(chunk)) {
    size_t count = std::min(ids.size() - at, static_cast<size_t>(chunk));
    StepSequence step{.ids = std::span(ids).subspan(at, count),
                      .first_position = static_cast<int64_t>(at),
                      .blocks = &blocks,
                      .logits = LogitsWanted::kAll};
    auto result = executor.run({&step, 1});
    if (!result.ok()) done = result.error();
    else out.logits.insert(out.logits.end(), result->logits.f32(), result->logits.f32() + result->logits.elements());
  }
  executor.set_observer({});
  DG_TRY(done);
  return out;
}

size_t argmax(std::span<const float> x) { return static_cast<size_t>(std::max_element(x.begin(), x.end()) - x.begin()); }

Result<std::vector<int32_t>> greedy(Executor& executor, BlockTable& blocks, int64_t position, std::span<const float> last, size_t count) {
  std::vector<int32_t> out;
  auto next = static_cast<int32_t>(argmax(last));
  while (true) {
    out.push_back(next);
    if (out.size() == count) return out;
    StepSequence step{.ids = {&next, 1}, .first_position = position++, .blocks = &blocks, .decode = true};
    DG_ASSIGN(StepResult result, executor.run({&step, 1}));
    next = static_cast<int32_t>(argmax({result.row(0), static_cast<size_t>(result.logits.cols())}));
  }
}

// KL(p || q) of the softmaxes of two rows of logits.
double kl_divergence(std::span<const float> p, std::span<const float> q) {
  double p_top = p[argmax(p)], q_top = q[argmax(q)], p_sum = 0, q_sum = 0;
  for (size_t i = 0; i < p.size(); i++) p_sum += std::exp(p[i] - p_top), q_sum += std::exp(q[i] - q_top);
  double kl = 0;
  for (size_t i = 0; i < p.size(); i++) {
    double log_p = p[i] - p_top - std::log(p_sum), log_q = q[i] - q_top - std::log(q_sum);
    kl += std::exp(log_p) * (log_p - log_q);
  }
  return std::max(kl, 0.0);
}

void compare(const Reference& reference, const Prefill& ours, int64_t vocab, bool exact, VerifyPrompt& p) {
  auto width = static_cast<size_t>(vocab);
  std::vector<double> kls;
  for (size_t t = 0; t < reference.ids.size(); t++) {
    std::span<const float> want(reference.logits.data() + t * width, width), have(ours.logits.data() + t * width, width);
    for (size_t i = 0; i < width; i++) {
      double d = std::fabs(static_cast<double>(want[i]) - have[i]);
      if (!(d <= p.max_logit_difference)) p.max_logit_difference = d;
      p.max_logit = std::max(p.max_logit, std::fabs(static_cast<double>(want[i])));
    }
    double kl = kl_divergence(want, have);
    p.mean_kl += kl / static_cast<double>(reference.ids.size());
    if (!(kl <= p.max_kl)) p.max_kl = kl;
    kls.push_back(std::isnan(kl) ? INFINITY : kl);
    size_t best = argmax(want);
    float second = -INFINITY;
    for (size_t i = 0; i < width; i++)
      if (i != best) second = std::max(second, want[i]);
    bool same = argmax(have) == best;
    p.argmax_agreed += same;
    if (want[best] - second > 0.05f) p.decided++, p.agreed += same;
  }
  std::nth_element(kls.begin(), kls.begin() + static_cast<std::ptrdiff_t>(kls.size() / 2), kls.end());
  if (!kls.empty()) p.median_kl = kls[kls.size() / 2];
  double tolerance = exact ? 1e-3 : 5e-2;
  for (size_t layer = 0; layer < std::min(reference.hidden.size(), ours.hidden.size()); layer++) {
    double worst = 0, top = 1;
    for (size_t i = 0; i < reference.hidden[layer].size(); i++) {
      double d = std::fabs(static_cast<double>(reference.hidden[layer][i]) - ours.hidden[layer][i]);
      if (!(d <= worst)) worst = d;
      top = std::max(top, std::fabs(static_cast<double>(reference.hidden[layer][i])));
    }
    if (!(worst / top <= p.worst_hidden)) p.worst_hidden = worst / top;
    if (!(worst <= tolerance * top) && p.first_bad_layer < 0) p.first_bad_layer = static_cast<int>(layer);
  }
}

void judge(VerifyPrompt& p, bool exact, bool experts) {
  const double kl = experts ? p.median_kl : p.mean_kl, agreement = experts ? 0.85 : 0.99, limit = experts ? 2e-3 : 1e-3;
  if (!p.chunk_equal) p.failure = "chunked prefill differs from whole prefill";
  else if (exact && !(p.max_logit_difference <= 1e-3 * std::max(1.0, p.max_logit)))
    p.failure = fmt::format("max |difference| {:.3g} exceeds {:.3g}", p.max_logit_difference, 1e-3 * std::max(1.0, p.max_logit));
  else if (exact && p.greedy != p.expected_greedy) p.failure = "greedy continuation differs";
  else if (!exact && !(kl <= limit))
    p.failure = fmt::format("{} KL divergence {:.3g} exceeds {:.0e}", experts ? "median" : "mean", kl, limit);
  else if (!exact && static_cast<double>(p.agreed) < agreement * static_cast<double>(p.decided))
    p.failure = fmt::format("argmax agrees at {} of {} decided positions, {:.0f} % needed", p.agreed, p.decided, agreement * 100);
  p.passed = p.failure.empty();
}

}  // namespace

bool VerifyReport::passed() const {
  return checked_difference.empty() && std::all_of(prompts.begin(), prompts.end(), [](const VerifyPrompt& p) { return p.passed; });
}

Result<VerifyReport> verify_checkpoint(const std::string& directory, const VerifyOptions& options) {
  DG_ASSIGN(std::string path, resolve_model(directory));
  if (!file_exists(path + "/reference.safetensors"))
    return input_error(fmt::format("{}/reference.safetensors: not found: verify needs the reference logits beside the weights", path));
  DG_ASSIGN(ModelConfig config, read_model_config(path));
  DG_ASSIGN(std::vector<Reference> references, read_references(path, config));
  int64_t longest = 1;
  for (const Reference& r : references) longest = std::max(longest, static_cast<int64_t>(r.ids.size() + r.greedy.size()));
  OpenOptions open = options.open;
  open.batch_invariant = true;  // results for chunks of different lengths are compared bit by bit
  open.load_text = false;
  open.progress = false;
  open.max_model_len = std::min(longest, config.max_position);
  if (open.max_model_len < longest)
    return input_error(fmt::format("{}/reference.safetensors: a prompt of {} tokens exceeds max_position_embeddings {}", path, longest,
                                   config.max_position));
  open.max_step_tokens = open.max_logit_rows = longest;
  DG_ASSIGN(std::unique_ptr<OpenedModel> opened, open_model(path, open));
  Executor& executor = *opened->executor;

  VerifyReport report;
  report.dtype = open.dtype;
  report.backend = opened->backend->description();
  bool exact = open.dtype == "float32";
  for (const Reference& r : references) {
    VerifyPrompt p;
    p.name = r.name;
    p.tokens = static_cast<int64_t>(r.ids.size());
    BlockTable blocks(executor.kv());
    DG_ASSIGN(Prefill whole, prefill(executor, r.ids, p.tokens, blocks));
    compare(r, whole, config.vocab, exact, p);
    auto vocab = static_cast<size_t>(config.vocab);
    std::span<const float> last(whole.logits.data() + (r.ids.size() - 1) * vocab, vocab);
    if (!r.greedy.empty()) {
      DG_ASSIGN(p.greedy, greedy(executor, blocks, p.tokens, last, r.greedy.size()));
      p.expected_greedy = r.greedy;
    }
    if (options.chunk > 0) {
      blocks.clear();
      DG_ASSIGN(Prefill chunked, prefill(executor, r.ids, options.chunk, blocks));
      p.chunk_equal = std::memcmp(chunked.logits.data(), whole.logits.data(), whole.logits.size() * sizeof(float)) == 0;
    }
    judge(p, exact, config.moe.experts > 0);
    report.prompts.push_back(std::move(p));
  }
  executor.kv().check_integrity();
  if (opened->checked) {
    report.checked_ops = opened->checked->compared();
    report.checked_difference = opened->checked->first_difference();
  }
  return report;
}

}  // namespace dg
