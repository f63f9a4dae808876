#include "ops_table.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <thread>

#include "backends/cpu/reference.h"
#include "device/cache_format.h"
#include "device/plugin.h"
#include "quant/convert.h"
#include "shared_heap.h"

namespace dg::ops_table {

Backend& reference() {
  static std::unique_ptr<Backend> backend = make_reference_backend();
  return *backend;
}

bool accelerator() { return std::getenv("DG_TEST_BACKEND") != nullptr; }

std::vector<std::string> tested_isas() {
  if (accelerator()) return {std::getenv("DG_TEST_BACKEND")};
  return usable_cpu_isas();
}

Backend& cpu(const std::string& isa, int threads) {
  if (accelerator()) {
    static std::unique_ptr<Backend> backend = [] {
      ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // tests read results at once
      auto made = load_backend(std::getenv("DG_TEST_BACKEND"), {.mapped = true, .threads = 2});
      CHECK(made.ok()) << made.error().message;
      share_heap_with_device();
      return std::move(made).value();
    }();
    return *backend;
  }
  static std::map<std::pair<std::string, int>, std::unique_ptr<Backend>> backends;
  auto& backend = backends[{isa, threads}];
  if (!backend) {
    auto made = make_cpu_backend({.threads = threads, .isa = isa, .pin = false});
    CHECK(made.ok()) << made.error().message;
    backend = std::move(made).value();
  }
  return *backend;
}

RankedBackends backend_group(const std::string& kind, int ranks) {
  RankedBackends made;
  made.group = std::make_unique<LocalGroup>(ranks, std::chrono::seconds(30));
  made.backends.resize(static_cast<size_t>(ranks));
  // All at once: devices may exchange addresses when they start.
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; r++)
    threads.emplace_back([&, r] {
      auto& backend = made.backends[static_cast<size_t>(r)];
      if (kind == "reference") {
        backend = make_reference_backend(made.group.get(), r);
        return;
      }
      auto one = accelerator()
                     ? load_backend(std::getenv("DG_TEST_BACKEND"), {.device = r, .group = made.group.get(), .rank = r, .threads = 1})
                     : make_cpu_backend({.threads = 1, .pin = false, .group = made.group.get(), .rank = r});
      if (one.ok()) backend = std::move(one).value();
      else made.group->fail(r, one.error());
    });
  for (std::thread& t : threads) t.join();
  if (made.group->failed()) {
    std::printf("%s\n", made.group->status().error().message.c_str());
    made.backends.clear();
  }
  return made;
}

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("DG_TEST_SEED");
    uint64_t s = text ? std::strtoull(text, nullptr, 10) : std::random_device{}();
    std::printf("op tests: DG_TEST_SEED=%llu\n", static_cast<unsigned long long>(s));
    return s;
  }();
  return value;
}

Buffer::Buffer(std::initializer_list<int64_t> shape, int64_t gap) {
  int64_t row = 1;
  for (auto d = shape.begin() + 1; d != shape.end(); d++) row *= *d;
  const int64_t rows = *shape.begin(), stride = row + gap;
  store_.assign(static_cast<size_t>(gap + rows * stride), bits_to_float(kPoisonBits));
  offset_ = gap;
  view = Tensor::of(store_.data() + offset_, Dtype::kF32, shape);
  view.stride[0] = stride;
}

Buffer& Buffer::randomise(Random& random, float size) {
  for (int64_t t = 0; t < view.rows(); t++)
    for (int64_t i = 0; i < row_elements(); i++) view.f32(t)[i] = random.normal() * size;
  return *this;
}

void Buffer::expect_gaps_untouched() const {
  const int64_t stride = view.stride[0], row = row_elements();
  for (int64_t i = 0; i < static_cast<int64_t>(store_.size()); i++) {
    const int64_t within = i - offset_;
    if (within >= 0 && within % stride < row) continue;
    ASSERT_EQ(float_to_bits(store_[static_cast<size_t>(i)]), kPoisonBits) << "written outside the tensor, at element " << within;
  }
}

double Buffer::row_norm(int64_t t) const {
  double sum = 0;
  for (int64_t i = 0; i < row_elements(); i++) sum += double{at(t, i)} * at(t, i);
  return std::sqrt(sum);
}

::testing::AssertionResult same_row(const Buffer& a, int64_t row_a, const Buffer& b, int64_t row_b) {
  const double rms = b.row_norm(row_b) / std::sqrt(static_cast<double>(b.row_elements()));
  for (int64_t i = 0; i < a.row_elements(); i++)
    if (accelerator() ? !(std::fabs(a.at(row_a, i) - b.at(row_b, i)) <= 16 * kBf16Eps * (std::fabs(b.at(row_b, i)) + rms))
                      : float_to_bits(a.at(row_a, i)) != float_to_bits(b.at(row_b, i)))
      return ::testing::AssertionFailure() << "rows " << row_a << " and " << row_b << " differ at " << i << ": " << a.at(row_a, i)
                                           << " and " << b.at(row_b, i);
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult same_rows(const Buffer& a, const Buffer& b) {
  for (int64_t t = 0; t < a.view.rows(); t++)
    if (auto same = same_row(a, t, b, t); !same) return same;
  return ::testing::AssertionSuccess();
}

RandomWeight::RandomWeight(const Format& format, int64_t out, int64_t in, Random& random, float size) {
  if (size == 0) size = 1.0f / std::sqrt(static_cast<float>(in));
  std::vector<float> source(static_cast<size_t>(out * in));
  for (float& v : source) v = random.normal() * size;
  data.resize(static_cast<size_t>(format.data_bytes(out, in)));
  scales.resize(static_cast<size_t>(format.scale_bytes(out, in)));
  format.encode(source.data(), out, in, data.data(), scales.data());
  weight = {.format = &format, .data = data.data(), .scales = scales.data(), .out = out, .in = in};
}

double RandomWeight::row_norm(int64_t row) const {
  std::vector<float> values(static_cast<size_t>(weight.in));
  weight.decode(row, 0, weight.in, values.data());
  double sum = 0;
  for (float v : values) sum += double{v} * v;
  return std::sqrt(sum);
}

Prepared::Prepared(Backend& backend, const RandomWeight& source) : weight(source.weight) {
  const Weight& from = source.weight;
  const int64_t bytes = backend.prepared_bytes(*from.format, from.out, from.in);
  if (bytes == 0) return;
  memory.resize(static_cast<size_t>(bytes) + 256);
  auto* to = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
  for (int64_t first = 0; first < from.out; first += Backend::kPrepareRows) {
    Weight rows = from;
    rows.out = std::min(Backend::kPrepareRows, from.out - first);
    rows.data += from.format->data_bytes(first, from.in);
    if (from.format->scale_type != ScaleType::kNone) rows.scales += from.format->scale_bytes(first, from.in);
    backend.prepare(rows, first, from.out, to);
  }
  weight.data = to;
  weight.scales = nullptr;
  weight.prepared = true;
}

Cache::Cache(Dtype dtype, int64_t block_tokens, int64_t width, int64_t row_gap)
    : dtype_(dtype), block_tokens_(block_tokens), width_(width), row_gap_(row_gap) {}

void Cache::add_sequence(int64_t tokens, Random& random) {
  std::vector<float> rows(static_cast<size_t>(tokens * width_));
  for (float& v : rows) v = random.normal();
  for (int64_t t = 0; t < tokens; t++) {
    float* row = rows.data() + t * width_;
    double sum = 0;
    for (int64_t i = 0; i < width_; i++) {
      largest_ = std::max(largest_, std::fabs(row[i]));
      sum += double{row[i]} * row[i];
    }
    largest_norm_ = std::max(largest_norm_, std::sqrt(sum));
  }
  sequences_.push_back(std::move(rows));
  blocks_.emplace_back(static_cast<size_t>((tokens + block_tokens_ - 1) / block_tokens_));
  block_count_ += static_cast<int64_t>(blocks_.back().size());
}

void Cache::finish(Random& random) {
  block_count_ += 3;  // some nobody owns
  std::vector<int32_t> free_blocks(static_cast<size_t>(block_count_));
  for (size_t i = 0; i < free_blocks.size(); i++) free_blocks[i] = static_cast<int32_t>(i);
  for (auto& sequence : blocks_)
    for (int32_t& block : sequence) {
      auto pick = free_blocks.begin() + random.below(static_cast<int>(free_blocks.size()));
      block = *pick;
      free_blocks.erase(pick);
    }
  fill();
}

void Cache::finish_like(const Cache& other) {
  block_count_ = other.block_count_;
  blocks_ = other.blocks_;
  fill();
}

void Cache::fill() {
  const auto element = static_cast<int64_t>(dtype_bytes(dtype_));
  const int64_t row_bytes = cache_row_bytes(dtype_, width_) + row_gap_ * element;
  data_.resize(static_cast<size_t>(block_count_ * block_tokens_ * row_bytes));
  for (size_t i = 0; i < data_.size(); i++) switch (dtype_) {  // NaN; in fp8 the largest value; in int8 the scale is the NaN
      case Dtype::kF32: data_[i] = reinterpret_cast<const std::byte*>(&kPoisonBits)[i % 4]; break;
      case Dtype::kBf16:
      case Dtype::kF16: data_[i] = i % 2 == 0 ? std::byte{0xff} : std::byte{0x7f}; break;
      default: data_[i] = std::byte{0x7f};
    }
  for (size_t s = 0; s < sequences_.size(); s++) {
    const int64_t tokens = static_cast<int64_t>(sequences_[s].size()) / width_;
    for (int64_t t = 0; t < tokens; t++) {
      const int64_t slot = blocks_[s][static_cast<size_t>(t / block_tokens_)] * block_tokens_ + t % block_tokens_;
      const float* values = sequences_[s].data() + t * width_;
      std::byte* row = data_.data() + slot * row_bytes;
      if (dtype_ == Dtype::kI8) int8_cache_encode(values, width_, row);
      else
        for (int64_t i = 0; i < width_; i++) {
          const uint16_t half = dtype_ == Dtype::kBf16 ? float_to_bf16(values[i]) : float_to_f16(values[i]);
          if (dtype_ == Dtype::kF32) std::memcpy(row + i * 4, values + i, 4);
          else if (dtype_ == Dtype::kF8E4m3) row[i] = std::byte{float_to_e4m3(values[i])};
          else std::memcpy(row + i * 2, &half, 2);
        }
    }
  }
}

PagedCache Cache::view() {
  Tensor t = Tensor::of(data_.data(), dtype_, {block_count_, block_tokens_, width_});
  t.stride[1] = cache_row_bytes(dtype_, width_) / static_cast<int64_t>(dtype_bytes(dtype_)) + row_gap_;
  t.stride[0] = block_tokens_ * t.stride[1];
  return {t};
}

::testing::AssertionResult Cache::same_bytes(const Cache& other) const {
  for (size_t i = 0; i < data_.size(); i++)
    if (data_[i] != other.data_[i])
      return ::testing::AssertionFailure() << "byte " << i << " is " << static_cast<int>(data_[i]) << ", expected "
                                           << static_cast<int>(other.data_[i]);
  return ::testing::AssertionSuccess();
}

std::vector<std::string> all_format_names() {
  std::vector<std::string> names;
  for (const Format* f : all_formats()) names.push_back(f->name);
  return names;
}

const char* dtype_word(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return "f32";
    case Dtype::kBf16: return "bf16";
    case Dtype::kF16: return "f16";
    case Dtype::kF8E4m3: return "fp8";
    case Dtype::kI8: return "int8";
    default: return dtype_name(dtype);
  }
}

}  // namespace dg::ops_table
