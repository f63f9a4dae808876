// What the op tests share: every backend under test beside the reference, fresh random inputs, poisoned and guarded
// buffers, and tolerances derived from norms.
//
// DG_TEST_SEED=n repeats a run; the seed is printed with every failure.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.h"
#include "device/backend.h"
#include "device/local_group.h"
#include "quant/formats.h"

namespace dg::ops_table {

inline constexpr float kEps = 5.96e-8f;              // half an ulp of 1: the rounding error of one float operation
inline constexpr uint32_t kPoisonBits = 0x7fc0dead;  // a NaN: shows up when read, and when not written

Backend& reference();
// Made once. With DG_TEST_BACKEND=cuda, say, that plug-in on memory which host and device share takes the place of the CPU's
// instruction sets in every table.
Backend& cpu(const std::string& isa, int threads = 2);
std::vector<std::string> tested_isas();
bool accelerator();
// Backends that compute together, one for each rank: "cpu", or what DG_TEST_BACKEND names on its first devices; "reference". Empty when
// there are not so many devices.
struct RankedBackends {
  std::unique_ptr<LocalGroup> group;  // outlives the backends
  std::vector<std::unique_ptr<Backend>> backends;
};
RankedBackends backend_group(const std::string& kind, int ranks);
// What an accelerator may lose per element: it multiplies in bf16 (f32 weights and caches excepted).
inline constexpr double kBf16Eps = 1.0 / 512;  // half an ulp of 1
uint64_t seed();

class Random {
 public:
  explicit Random(uint64_t salt = 0) : engine_(seed() + salt) {}
  float normal() { return normal_(engine_); }
  int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// A row-strided f32 tensor between poisoned gaps.
class Buffer {
 public:
  Buffer(std::initializer_list<int64_t> shape, int64_t gap = 5);
  Buffer(const Buffer& other) : view(other.view), store_(other.store_), offset_(other.offset_) { view.data = store_.data() + offset_; }
  Buffer& operator=(const Buffer&) = delete;

  Buffer& randomise(Random& random, float size = 1.0f);
  void expect_gaps_untouched() const;
  float at(int64_t t, int64_t i) const { return view.f32(t)[i]; }  // i over the flattened rest of the row
  int64_t row_elements() const { return view.elements() / std::max<int64_t>(1, view.rows()); }
  double row_norm(int64_t t) const;
  Tensor rows(int64_t begin, int64_t count) const { return view.slice(0, begin, count); }

  Tensor view;

 private:
  std::vector<float> store_;
  int64_t offset_ = 0;
};

// A row of `a` equals a row of `b` bit for bit; to a few roundings of bf16 on an accelerator, whose kernels depend on the batch.
::testing::AssertionResult same_row(const Buffer& a, int64_t row_a, const Buffer& b, int64_t row_b);
::testing::AssertionResult same_rows(const Buffer& a, const Buffer& b);

class Ints {
 public:
  explicit Ints(std::vector<int32_t> v) : values(std::move(v)) {}
  Tensor view(int64_t begin = 0, int64_t count = -1) {
    return Tensor::of(values.data() + begin, Dtype::kI32, {count < 0 ? static_cast<int64_t>(values.size()) - begin : count});
  }
  std::vector<int32_t> values;
};

// Random weight encoded in a format.
struct RandomWeight {
  RandomWeight(const Format& format, int64_t out, int64_t in, Random& random, float size = 0);
  double row_norm(int64_t row) const;
  std::vector<std::byte> data, scales;
  Weight weight;
};

// A weight as the backend keeps it; as published where its prepared_bytes are 0.
struct Prepared {
  Prepared(Backend& backend, const RandomWeight& from);
  Prepared(const Prepared&) = delete;
  Prepared(Prepared&&) = default;
  std::vector<std::byte> memory;  // aligned by hand: only the plain operator new gives memory that an accelerator shares
  Weight weight;
};

struct Scratch {
  explicit Scratch(size_t bytes) : memory((bytes + 127) / 64 * 64), arena(aligned(), bytes) {}
  void* aligned() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<std::byte> memory;
  Arena arena;
};

// A paged cache whose sequences own scattered blocks; everything that no sequence owns is poison.
class Cache {
 public:
  Cache(Dtype dtype, int64_t block_tokens, int64_t width, int64_t row_gap = 0);
  // Adds a sequence of `tokens` random rows (the blocks are scattered when finish() is called).
  void add_sequence(int64_t tokens, Random& random);
  void finish(Random& random);
  void finish_like(const Cache& other);  // the same blocks: k and v of one layer
  PagedCache view();
  void fill_from(const Cache& other) { data_ = other.data_; }  // of the same shape
  ::testing::AssertionResult same_bytes(const Cache& other) const;
  const int32_t* blocks(size_t sequence) const { return blocks_[sequence].data(); }
  float largest() const { return largest_; }
  double largest_row_norm() const { return largest_norm_; }

 private:
  void fill();
  Dtype dtype_;
  int64_t block_tokens_, width_, row_gap_;
  std::vector<std::vector<float>> sequences_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<std::byte> data_;
  int64_t block_count_ = 0;
  float largest_ = 0;
  double largest_norm_ = 0;
};

std::vector<std::string> all_format_names();
const char* dtype_word(Dtype dtype);

}  // namespace dg::ops_table

#define DG_TRACE_SEED() SCOPED_TRACE("DG_TEST_SEED=" + std::to_string(::dg::ops_table::seed()))
