// The default bodies of adjust_logits and pick_rows: host code, row by row. Backends of host memory need no faster ones (the sampler
// reads their rows); tests hold kernels against these, bit for bit.
#include "device/row_picks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "device/backend.h"

// Optimised in debug builds too, and never contracted to fused multiply-adds, which only some processors have.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("O3", "fp-contract=off")
#endif

namespace dg {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 32;

// In the order of engine/sampler_kernels.cpp: each lane adds its logits in order, then lanes are added in halves.
float sum_chunk(const float* logits, size_t count, float max, float scale) {
  float lanes[kLanes] = {};
  for (size_t i = 0; i < count; i++) lanes[i % kLanes] += exp2_of_negative((logits[i] - max) * scale);
  for (size_t width = kLanes / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

// A row as chunks with their maxima.
struct Chunks {
  Chunks(const float* row, size_t columns) : logits(row), columns(columns) {
    for (size_t begin = 0; begin < columns; begin += kChunk) {
      float largest = kMinusInfinity;
      for (size_t i = begin; i < std::min(begin + kChunk, columns); i++) largest = logits[i] > largest ? logits[i] : largest;
      max.push_back(largest);
      row_max = std::max(row_max, largest);
    }
  }
  size_t size(size_t chunk) const { return std::min(kChunk, columns - chunk * kChunk); }

  // What each chunk weighs beside a logit of row_max; chunks that are negligible beside those before them weigh nothing.
  std::vector<double> weights(float scale) const {
    std::vector<double> all;
    float so_far = kMinusInfinity;
    for (size_t c = 0; c < max.size(); c++) {
      const bool counts = max[c] > kMinusInfinity && !((max[c] - so_far) * scale < -kNegligibleBits);
      const float sum = counts ? sum_chunk(logits + c * kChunk, size(c), max[c], scale) : 0;
      all.push_back(sum > 0 ? static_cast<double>(sum) * static_cast<double>(exp2_of_negative((max[c] - row_max) * scale)) : 0);
      so_far = std::max(so_far, max[c]);
    }
    return all;
  }

  const float* logits;
  size_t columns;
  std::vector<float> max;
  float row_max = kMinusInfinity;
};

double in_order(const std::vector<double>& weights) {
  double total = 0;
  for (double w : weights) total += w;
  return total;
}

void pick_row(const PickRows& op, int64_t row, const PickSpec& spec) {
  const Chunks chunks(op.logits.f32(row), static_cast<size_t>(op.logits.cols()));
  PickHeader header{.total = 0, .total_at_one = 0, .left = 0, .max = chunks.row_max + 0.0f, .count = 0, .complete = 0, .chunk = -1};
  auto* words = op.out.i32(row);
  auto* listed = reinterpret_cast<float*>(words) + sizeof(PickHeader) / 4;
  int32_t* ids = words + sizeof(PickHeader) / 4 + op.most;
  if (spec.flags & kPickSums) {
    const std::vector<double> weights = chunks.weights(spec.scale);
    header.total = in_order(weights);
    if (spec.flags & kPickDraw) {
      CHECK(op.draw);
      header.left = spec.uniform * header.total;
      for (size_t c = 0; c < weights.size(); c++) {
        if (weights[c] > 0) header.chunk = static_cast<int32_t>(c);
        if (header.left < weights[c]) break;
        header.left -= weights[c];
      }
      float* chunk = listed + 2 * static_cast<size_t>(op.most);
      std::fill_n(chunk, kChunk, kMinusInfinity);
      if (header.chunk >= 0) {
        const auto c = static_cast<size_t>(header.chunk);
        std::copy_n(chunks.logits + c * kChunk, chunks.size(c), chunk);
      }
    }
  }
  if (spec.flags & kPickSumsAtOne) header.total_at_one = in_order(chunks.weights(kLog2E));

  std::vector<std::pair<float, int32_t>> all;
  for (size_t i = 0; i < chunks.columns; i++)
    if (chunks.logits[i] > kMinusInfinity) all.emplace_back(chunks.logits[i], static_cast<int32_t>(i));
  CHECK(spec.candidates <= op.most && op.most <= kMostCandidates) << spec.candidates << " of " << op.most;
  const size_t count = std::min(static_cast<size_t>(spec.candidates), all.size());
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count), all.end(),
                    [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); });
  for (size_t i = 0; i < count; i++) listed[i] = all[i].first + 0.0f, ids[i] = op.first_id + all[i].second;
  header.count = static_cast<int32_t>(count);
  header.complete = count < static_cast<size_t>(spec.candidates);
  std::memcpy(words, &header, sizeof header);
}

}  // namespace

float exp2_of_negative(float y) {
  if (!(y > kSmallestExponent)) return 0;
  float whole = y + kExp2Round;
  float r = y - (whole - kExp2Round);
  float p = r * kExp2[5] + kExp2[4];
  for (int i = 3; i >= 0; i--) p = p * r + kExp2[i];
  uint32_t exponent, bits;
  std::memcpy(&exponent, &whole, sizeof exponent);
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

void Backend::adjust_logits(const AdjustLogits& op) {
  for (int64_t row = 0; row < op.logits.rows(); row++) {
    PickSpec spec;
    std::memcpy(static_cast<void*>(&spec), op.specs.i32(row), sizeof spec);
    if (spec.candidates == 0) continue;
    float* logits = op.logits.f32(row);
    for (int32_t i = 0; i < spec.change_count; i++) {
      LogitChange change;
      std::memcpy(&change, op.changes.i32(spec.first_change + i), sizeof change);
      const int64_t column = int64_t{change.id} - op.first_id;
      if (column < 0 || column >= op.logits.cols()) continue;
      float& at = logits[column];
      if (change.outputs >= 0) {
        double logit = at;
        logit = logit > 0 ? logit / spec.repetition : logit * spec.repetition;
        if (change.outputs > 0) logit -= spec.presence + spec.frequency * change.outputs;
        at = static_cast<float>(logit);
      }
      at = change.bias == kMinusInfinity ? kMinusInfinity : at + change.bias;
    }
    if (spec.mask < 0) continue;
    const int32_t* mask = op.masks.i32(spec.mask);
    for (int64_t column = 0; column < op.logits.cols(); column++) {
      const int64_t id = op.first_id + column;
      if (!(static_cast<uint32_t>(mask[id / 32]) >> (id % 32) & 1)) logits[column] = kMinusInfinity;
    }
  }
}

void Backend::pick_rows(const PickRows& op) {
  for (int64_t row = 0; row < op.logits.rows(); row++) {
    PickSpec spec;
    std::memcpy(static_cast<void*>(&spec), op.specs.i32(row), sizeof spec);
    if (spec.candidates > 0) pick_row(op, row, spec);
  }
}

#ifndef __clang__
#pragma GCC pop_options
#endif

}  // namespace dg
