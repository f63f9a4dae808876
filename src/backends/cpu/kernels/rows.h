// Kernels over single rows: norms, rotary embedding, activations, conversions.
#pragma once
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"
#include "quant/convert.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

void scale_row(float* x, float factor, int64_t n) {
  for_each_vector(n, x, [&](auto at) { return at(x) * factor; });
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  vf parts[kParts] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int p = 0; p < kParts; p++) {
      vf v = load(x + i + p * kLanes);
      parts[p] += v * v;
    }
  float lanes[16];
  for (int p = 0; p < kParts; p++) {
    if (i + p * kLanes < n) {
      vf v = load_first(x + i + p * kLanes, n - i - p * kLanes);
      parts[p] += v * v;
    }
    store(lanes + p * kLanes, parts[p]);
  }
  const float factor = 1.0f / __builtin_sqrtf(hsum16(lanes) / static_cast<float>(n) + eps);
  for_each_vector(n, out, [&](auto at) { return at(x) * factor * at(weight); });
}

void add(const float* a, const float* b, int64_t n, float* out) {
  for_each_vector(n, out, [&](auto at) { return at(a) + at(b); });
}

void add_scaled(const float* x, float scale, int64_t n, float* out) {
  for_each_vector(n, out, [&](auto at) { return at(out) + at(x) * scale; });
}

void act_mul(const float* gate, const float* up, int64_t n, float* out) {
  for_each_vector(n, out, [&](auto at) { return silu_vector(at(gate)) * at(up); });
}

void rope(float* x, const float* cosine, const float* sine, int64_t half, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < half; i++) {
      float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] - b * sine[i];
      x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    return;
  }
  float* y = x + half;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = y[i];
    x[i] = a * cosine[i] - b * sine[i];
    y[i] = b * cosine[i] + a * sine[i];
  }
}

template <Element E>
struct ElementOf;
template <>
struct ElementOf<Element::kF32> {
  using Type = float;
  static float read(float v) { return v; }
  static float write(float v) { return v; }
};
template <>
struct ElementOf<Element::kBf16> {
  using Type = uint16_t;
  static float read(uint16_t v) { return bf16_to_float(v); }
  static uint16_t write(float v) { return float_to_bf16(v); }
};
template <>
struct ElementOf<Element::kF16> {
  using Type = uint16_t;
  static float read(uint16_t v) { return f16_to_float(v); }
  static uint16_t write(float v) { return float_to_f16(v); }
};

template <Element From, Element To>
void convert_as(const void* from, void* to, int64_t n) {
  auto* source = static_cast<const typename ElementOf<From>::Type*>(from);
  auto* target = static_cast<typename ElementOf<To>::Type*>(to);
  for (int64_t i = 0; i < n; i++) target[i] = ElementOf<To>::write(ElementOf<From>::read(source[i]));
}

template <Element From>
void convert_from(const void* from, void* to, Element to_type, int64_t n) {
  switch (to_type) {
    case Element::kF32: return convert_as<From, Element::kF32>(from, to, n);
    case Element::kBf16: return convert_as<From, Element::kBf16>(from, to, n);
    case Element::kF16: return convert_as<From, Element::kF16>(from, to, n);
  }
}

void convert(const void* from, Element from_type, void* to, Element to_type, int64_t n) {
  if (from_type == to_type) {
    std::memmove(to, from, static_cast<size_t>(n) * (from_type == Element::kF32 ? 4 : 2));
    return;
  }
  switch (from_type) {
    case Element::kF32: return convert_from<Element::kF32>(from, to, to_type, n);
    case Element::kBf16: return convert_from<Element::kBf16>(from, to, to_type, n);
    case Element::kF16: return convert_from<Element::kF16>(from, to, to_type, n);
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
