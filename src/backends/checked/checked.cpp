#include "backends/checked/checked.h"

#include <fmt/core.h>

#include <cmath>
#include <cstring>
#include <deque>

namespace dg {
namespace {

// The tensors an op writes; those it also reads keep their old content in the copy.
std::vector<Tensor*> outputs(Embed& o) { return {&o.out}; }
std::vector<Tensor*> outputs(Linear& o) { return {&o.out}; }
std::vector<Tensor*> outputs(LinearSeveral& o) {
  std::vector<Tensor*> all;
  for (int i = 0; i < o.count; i++) all.push_back(&o.parts[i].out);
  return all;
}
std::vector<Tensor*> outputs(LinearGlu& o) { return {&o.out}; }
std::vector<Tensor*> outputs(RmsNorm& o) { return {&o.out}; }
std::vector<Tensor*> outputs(AllReduce& o) { return {&o.x}; }
std::vector<Tensor*> outputs(AddRmsNorm& o) { return {&o.out, &o.residual}; }
std::vector<Tensor*> outputs(Rope& o) { return {&o.x}; }
std::vector<Tensor*> outputs(HeadNormRope& o) { return {&o.x}; }
std::vector<Tensor*> outputs(ActMul& o) { return {&o.out}; }
std::vector<Tensor*> outputs(Add& o) { return {&o.out}; }
std::vector<Tensor*> outputs(GatherRows& o) { return {&o.out}; }
std::vector<Tensor*> outputs(Fill& o) { return {&o.out}; }
std::vector<Tensor*> outputs(Copy& o) { return {&o.out}; }
std::vector<Tensor*> outputs(Attention& o) { return {&o.out}; }
std::vector<Tensor*> outputs(MlaAttention& o) { return {&o.out}; }
std::vector<Tensor*> outputs(MoeRoute& o) { return {&o.ids, &o.weights}; }
std::vector<Tensor*> outputs(MoeExperts& o) { return {&o.out}; }
std::vector<Tensor*> outputs(AdjustLogits& o) { return {&o.logits}; }
std::vector<Tensor*> outputs(PickRows& o) { return {&o.out}; }

// Inputs that alias an output (in-place ops) must read the copy instead.
void redirect_inputs(RmsNorm& o, const void* was) {
  if (o.x.data == was) o.x.data = o.out.data, o.x.stride = o.out.stride;
}
void redirect_inputs(ActMul& o, const void* was) {
  if (o.gate.data == was) o.gate = o.out;
  if (o.up.data == was) o.up = o.out;
}
void redirect_inputs(Add& o, const void* was) {
  if (o.a.data == was) o.a = o.out;
  if (o.b.data == was) o.b = o.out;
}
template <class Op>
void redirect_inputs(Op&, const void*) {}

// Calls f(element offset in `a`, element offset in `b`) for every element of two views of one shape.
template <class F>
void for_each_element(const Tensor& a, const Tensor& b, F f) {
  int64_t rows = a.dim(0), middle = a.rank == 3 ? a.dim(1) : 1, last = a.rank == 1 ? 1 : a.cols();
  auto offset = [](const Tensor& t, int64_t i, int64_t j, int64_t k) {
    if (t.rank == 1) return i * t.stride[0];
    if (t.rank == 2) return i * t.stride[0] + k * t.stride[1];
    return i * t.stride[0] + j * t.stride[1] + k * t.stride[2];
  };
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < middle; j++)
      for (int64_t k = 0; k < last; k++) f(offset(a, i, j, k), offset(b, i, j, k));
}

// A copy of a tensor's elements without gaps, which takes the tensor's place.
struct Packed {
  explicit Packed(Tensor& t) {
    if (!t.valid()) return;
    const Tensor was = t;
    const size_t element = dtype_bytes(was.dtype);
    storage.resize(was.bytes());
    t.data = storage.data();
    int64_t step = 1;
    for (int d = was.rank; d-- > 0;) t.stride[static_cast<size_t>(d)] = step, step *= was.dim(d);
    for_each_element(was, t, [&](int64_t from, int64_t to) {
      std::memcpy(storage.data() + static_cast<size_t>(to) * element,
                  static_cast<std::byte*>(was.data) + static_cast<size_t>(from) * element, element);
    });
  }
  std::vector<std::byte> storage;
};

std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int i = 0; i < t.rank; i++) text += (i ? ", " : "") + std::to_string(t.dim(i));
  return text + ")";
}

}  // namespace

CheckedBackend::CheckedBackend(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> reference, float tolerance)
    : tested_(std::move(tested)), reference_(std::move(reference)), tolerance_(tolerance) {}

std::string CheckedBackend::description() const {
  return fmt::format("checked: {} against {}", tested_->description(), reference_->description());
}

template <class Op>
void CheckedBackend::both(const char* name, const Op& op, void (Backend::*run)(const Op&)) {
  Op copy = op;
  std::deque<Packed> storage;
  std::vector<Tensor> results;
  for (Tensor* out : outputs(copy)) {
    const void* const was = out->data;
    storage.emplace_back(*out);
    redirect_inputs(copy, was);
    results.push_back(*out);
  }
  (reference_.get()->*run)(copy);
  reference_->synchronise();
  (tested_.get()->*run)(op);
  tested_->synchronise();
  compared_++;
  Op original = op;
  std::vector<Tensor*> written = outputs(original);
  for (size_t i = 0; i < written.size(); i++) compare(name, *written[i], results[i]);
}

void CheckedBackend::compare(const char* name, const Tensor& tested, const Tensor& reference) {
  double square = 0, worst = 0;
  int64_t count = 0;
  if (tested.dtype == Dtype::kI32) {
    int64_t different = 0;
    for_each_element(tested, reference, [&](int64_t a, int64_t b) {
      different += static_cast<int32_t*>(tested.data)[a] != static_cast<int32_t*>(reference.data)[b];
    });
    if (different && first_difference_.empty())
      first_difference_ =
          fmt::format("op {} {} {}: {} of {} ids differ", compared_, name, shape_text(tested), different, tested.elements());
    return;
  }
  if (tested.dtype != Dtype::kF32) return;
  for_each_element(tested, reference, [&](int64_t a, int64_t b) {
    double x = static_cast<float*>(tested.data)[a], y = static_cast<float*>(reference.data)[b];
    double error = std::fabs(x - y);
    if (!(error <= worst)) worst = error;  // a NaN wins
    square += y * y;
    count++;
  });
  double rms = std::sqrt(square / static_cast<double>(std::max<int64_t>(1, count)));
  double relative = worst / (rms + 1e-6);
  if (!(relative <= worst_)) worst_ = relative;
  if (!(relative <= tolerance_) && first_difference_.empty())
    first_difference_ = fmt::format("op {} {} {}: max error {:.3g}, {:.3g} of the reference's rms {:.3g}, tolerance {:.3g}", compared_,
                                    name, shape_text(tested), worst, relative, rms, tolerance_);
}

// The cache is shared by both; what was written is read back and compared with the values themselves.
template <>
void CheckedBackend::both(const char* name, const KvWrite& op, void (Backend::*)(const KvWrite&)) {
  tested_->kv_write(op);
  tested_->synchronise();
  compared_++;
  compare_cache(name, op);
}

// Fused with the cache write: the reference runs first on copies and leaves its rows in the cache, the tested backend overwrites them.
template <>
void CheckedBackend::both(const char* name, const RopeKvWrite& op, void (Backend::*)(const RopeKvWrite&)) {
  RopeKvWrite copy = op;
  Packed q(copy.q), k(copy.k);
  reference_->rope_kv_write(copy);
  reference_->synchronise();
  tested_->rope_kv_write(op);
  tested_->synchronise();
  compared_++;
  compare(name, op.q, copy.q);
  compare(name, op.k, copy.k);
  compare_cache(name, {.cache = op.k_cache, .values = op.k, .slots = op.slots});
  compare_cache(name, {.cache = op.v_cache, .values = op.v, .slots = op.slots});
}

template <>
void CheckedBackend::both(const char* name, const LatentKvWrite& op, void (Backend::*)(const LatentKvWrite&)) {
  LatentKvWrite copy = op;
  Packed latent(copy.latent), q_low(copy.q_low), q_pe(copy.q_pe);
  reference_->latent_kv_write(copy);
  reference_->synchronise();
  tested_->latent_kv_write(op);
  tested_->synchronise();
  compared_++;
  compare(name, op.latent, copy.latent);
  if (op.q_low.valid()) compare(name, op.q_low, copy.q_low);
  if (op.q_pe.valid()) compare(name, op.q_pe, copy.q_pe);
  compare_cache(name, {.cache = op.cache, .values = op.latent, .slots = op.slots});
}

void CheckedBackend::compare_cache(const char* name, const KvWrite& op) {
  auto rows = static_cast<size_t>(op.values.rows()), width = static_cast<size_t>(op.cache.width());
  std::vector<float> back(rows * width), expected(rows * width);
  std::vector<uint16_t> rounded(width);
  for (size_t t = 0; t < rows; t++) {
    int64_t slot = *op.slots.ptr<int32_t>(static_cast<int64_t>(t)), per_block = op.cache.block_tokens();
    Tensor block = op.cache.data.slice(0, slot / per_block, 1).slice(1, slot % per_block, 1);
    Tensor row = Tensor::of(block.data, op.cache.data.dtype, {1, static_cast<int64_t>(width)});
    reference_->copy({.out = Tensor::of(back.data() + t * width, Dtype::kF32, {1, row.cols()}), .x = row});
    Tensor value = op.values.slice(0, static_cast<int64_t>(t), 1),
           want = Tensor::of(expected.data() + t * width, Dtype::kF32, {1, row.cols()});
    if (row.dtype == Dtype::kF32) {
      reference_->copy({.out = want, .x = value});
    } else {
      Tensor half = Tensor::of(rounded.data(), row.dtype, {1, row.cols()});
      reference_->copy({.out = half, .x = value});
      reference_->copy({.out = want, .x = half});
    }
  }
  compare(name, Tensor::of(back.data(), Dtype::kF32, {op.values.rows(), op.cache.width()}),
          Tensor::of(expected.data(), Dtype::kF32, {op.values.rows(), op.cache.width()}));
}

#define DG_CHECKED_OP(method, Op) \
  void CheckedBackend::method(const Op& op) { both(#method, op, &Backend::method); }
DG_OPS(DG_CHECKED_OP)
#undef DG_CHECKED_OP

}  // namespace dg
