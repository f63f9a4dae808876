#include "engine/device_picks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace dg {
namespace {

constexpr int64_t kSpecWords = sizeof(PickSpec) / 4, kChangeWords = sizeof(LogitChange) / 4, kHeaderWords = sizeof(PickHeader) / 4;
// Changed tokens of all rows of a step, for each row that it may have; a row that does not fit is wanted whole.
constexpr int64_t kChangesPerRow = 2048;
constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Into the change of the same token. False: two biases, which round twice when they are added one by one.
bool merge(const LogitChange& from, LogitChange& to) {
  const bool two = from.bias != 0 && to.bias != 0 && from.bias != kForbidden && to.bias != kForbidden;
  to.outputs = std::max(to.outputs, 0) + std::max(from.outputs, 0) - (to.outputs < 0 && from.outputs < 0);
  to.bias += from.bias;
  return !two;
}

}  // namespace

Result<std::unique_ptr<DevicePicks>> DevicePicks::create(Backend& backend, int64_t vocab, int64_t max_rows) {
  auto picks = std::unique_ptr<DevicePicks>(new DevicePicks(backend, vocab, max_rows));
  const int64_t words = max_rows * (kSpecWords + (vocab + 31) / 32 + kChangesPerRow * kChangeWords);
  DG_ASSIGN(picks->input_memory_, backend.allocate(static_cast<size_t>(words) * 4, "sampling"));
  const int64_t results = max_rows * pick_words(kMostCandidates, true);
  DG_ASSIGN(picks->output_memory_, backend.allocate(static_cast<size_t>(results) * 4, "sampling"));
  DG_ASSIGN(picks->host_output_, backend.allocate_host(static_cast<size_t>(results) * 4, "sampling"));
  picks->chunks_ = (vocab + static_cast<int64_t>(kChunk) - 1) / static_cast<int64_t>(kChunk);
  DG_ASSIGN(picks->scratch_, backend.allocate(static_cast<size_t>(3 * max_rows * picks->chunks_) * 4, "sampling"));
  picks->rows_.resize(static_cast<size_t>(max_rows));
  return picks;
}

void DevicePicks::begin(int64_t rows) {
  CHECK(rows <= max_rows_) << rows << " rows";
  count_ = rows;
  for (int64_t i = 0; i < rows; i++) {
    rows_[static_cast<size_t>(i)].state = State::kWhole;
    rows_[static_cast<size_t>(i)].result.reset();
  }
}

void DevicePicks::skip(int64_t row) { rows_[static_cast<size_t>(row)].state = State::kNone; }

void DevicePicks::add(int64_t index, const SampleInput& input, std::span<const int32_t> drafts) {
  Row& row = rows_[static_cast<size_t>(index)];
  const SamplingParams& params = *input.params;
  row.spec = picks_for(params, input.logprobs, vocab_);
  if (row.spec.candidates == 0) return;
  row.spec.uniform = uniform_draw(input.seed, input.position);
  row.changes.clear();
  const TokenHistory* history = params.penalises() ? input.history : nullptr;
  if (history)
    for (auto [id, outputs] : history->entries()) row.changes.push_back({id, outputs, 0});
  const auto known = static_cast<std::ptrdiff_t>(row.changes.size());  // of these, find() knows the place
  bool exact = true;
  auto change = [&](int32_t id, int32_t outputs, float bias) {
    const int64_t at = history ? history->find(id) : -1;
    if (at < 0) row.changes.push_back({id, outputs, bias});
    else exact &= merge({id, outputs, bias}, row.changes[static_cast<size_t>(at)]);
  };
  if (history)
    for (int32_t id : drafts) change(id, 1, 0);
  for (auto [id, bias] : params.logit_bias) change(id, -1, bias);
  for (int32_t id : input.forbidden) change(id, -1, kForbidden);
  std::sort(row.changes.begin() + known, row.changes.end(), [](const LogitChange& a, const LogitChange& b) { return a.id < b.id; });
  size_t size = static_cast<size_t>(known);
  for (size_t i = size; i < row.changes.size(); i++) {
    if (size > static_cast<size_t>(known) && row.changes[size - 1].id == row.changes[i].id)
      exact &= merge(row.changes[i], row.changes[size - 1]);
    else row.changes[size++] = row.changes[i];
  }
  row.changes.resize(size);
  if (!exact) return;
  std::erase_if(row.changes, [&](const LogitChange& c) { return c.id < 0 || c.id >= vocab_; });
  row.mask.clear();
  if (input.allowed) row.mask.assign(input.allowed, input.allowed + (vocab_ + 31) / 32);
  row.state = State::kPicked;
}

void DevicePicks::run(Tensor logits) {
  CHECK(logits.rows() == count_ && logits.cols() == vocab_) << logits.rows() << " rows of " << logits.cols();
  const int64_t mask_words = (vocab_ + 31) / 32;
  int64_t masks = 0, changes = 0, picked = 0;
  int most = 0;
  bool draw = false;
  for (int64_t i = 0; i < count_; i++) {
    Row& row = rows_[static_cast<size_t>(i)];
    const auto own = static_cast<int64_t>(row.changes.size());
    if (row.state == State::kPicked && changes + own > max_rows_ * kChangesPerRow) row.state = State::kWhole;
    if (row.state != State::kPicked) {
      row.spec = {};
      continue;
    }
    row.spec.first_change = static_cast<int32_t>(changes);
    row.spec.change_count = static_cast<int32_t>(own);
    row.spec.mask = row.mask.empty() ? -1 : static_cast<int32_t>(masks++);
    changes += own, picked++;
    most = std::max(most, row.spec.candidates);
    draw |= (row.spec.flags & kPickDraw) != 0;
  }
  if (picked == 0) return;

  words_.resize(static_cast<size_t>(count_ * kSpecWords + masks * mask_words + changes * kChangeWords));
  int32_t* specs = words_.data();
  int32_t* mask_at = specs + count_ * kSpecWords;
  int32_t* change_at = mask_at + masks * mask_words;
  for (int64_t i = 0; i < count_; i++) {
    const Row& row = rows_[static_cast<size_t>(i)];
    std::memcpy(specs + i * kSpecWords, &row.spec, sizeof row.spec);
    if (row.state != State::kPicked) continue;
    if (row.spec.mask >= 0) std::memcpy(mask_at + row.spec.mask * mask_words, row.mask.data(), row.mask.size() * 4);
    if (row.spec.change_count > 0)
      std::memcpy(change_at + row.spec.first_change * kChangeWords, row.changes.data(), row.changes.size() * sizeof(LogitChange));
  }
  auto* base = static_cast<int32_t*>(input_memory_->data());
  backend_.upload(base, words_.data(), words_.size() * 4);
  const Tensor on_device = Tensor::of(base, Dtype::kI32, {count_, kSpecWords});
  if (masks > 0 || changes > 0)
    backend_.adjust_logits({.logits = logits,
                            .specs = on_device,
                            .changes = Tensor::of(base + (change_at - specs), Dtype::kI32, {changes, kChangeWords}),
                            .masks = Tensor::of(base + (mask_at - specs), Dtype::kI32, {masks, mask_words})});
  const Tensor out = Tensor::of(output_memory_->data(), Dtype::kI32, {count_, pick_words(most, draw)});
  backend_.pick_rows({.out = out,
                      .logits = logits,
                      .specs = on_device,
                      .most = most,
                      .draw = draw,
                      .scratch = Tensor::of(scratch_->data(), Dtype::kF32, {3, count_, chunks_})});
  backend_.download(host_output_->data(), out.data, out.bytes());

  for (int64_t i = 0; i < count_; i++) {
    Row& row = rows_[static_cast<size_t>(i)];
    if (row.state != State::kPicked) continue;
    const auto* words = static_cast<const int32_t*>(host_output_->data()) + i * out.cols();
    PickedRow& result = row.result.emplace();
    std::memcpy(&result.header, words, sizeof result.header);
    const auto count = static_cast<size_t>(result.header.count);
    CHECK(count <= static_cast<size_t>(row.spec.candidates)) << count;
    const auto* floats = reinterpret_cast<const float*>(words) + kHeaderWords;
    result.logits = {floats, count};
    result.ids = {words + kHeaderWords + most, count};
    result.chunk = row.spec.flags & kPickDraw ? floats + 2 * most : nullptr;
    result.vocab = vocab_;
  }
}

}  // namespace dg
