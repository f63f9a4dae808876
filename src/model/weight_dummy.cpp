// WeightStore::load_dummy: random weights of a model of which only config.json is there, to measure speed and memory at true size.
// Rows repeat: of each width and format there are a few random blocks of 128 rows, encoded once, so that hundreds of gigabytes take
// seconds. Routers and small matrices are random throughout: equal rows of a router would send all tokens to the same experts.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/progress.h"
#include "model/weight_store_items.h"

namespace dg {
namespace {

constexpr int64_t kRows = Backend::kPrepareRows;
constexpr int kBlocks = 5;
constexpr int64_t kAlwaysRandom = 1 << 20;  // elements

// Sums of four uniform numbers: nearly normal, of variance 1.
class Normal {
 public:
  explicit Normal(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) {}
  float operator()() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    const uint64_t s = state_;
    const auto sum = static_cast<float>((s & 0xffff) + (s >> 16 & 0xffff) + (s >> 32 & 0xffff) + (s >> 48));
    return (sum - 131070.0f) * (1.7320508f / 65535.0f);
  }

 private:
  uint64_t state_;
};

uint64_t hash_of(const std::string& name) { return std::hash<std::string>{}(name) | 1; }

struct Block {
  std::vector<std::byte> data, scales;
  Block(const Format& format, int64_t rows, int64_t in, uint64_t seed)
      : data(static_cast<size_t>(format.data_bytes(rows, in))), scales(static_cast<size_t>(format.scale_bytes(rows, in))) {
    std::vector<float> values(static_cast<size_t>(rows * in));
    Normal normal(seed);
    const float size = 1.0f / std::sqrt(static_cast<float>(in));
    for (float& v : values) v = normal() * size;
    format.encode(values.data(), rows, in, data.data(), scales.data());
  }
};

// The blocks of one width and format, made when the first matrix asks for them.
class Blocks {
 public:
  const Block& get(const Format& format, int64_t in, int index) {
    std::unique_ptr<Slot>* slot;
    {
      std::lock_guard lock(mutex_);
      slot = &slots_[{&format, in, index}];
      if (!*slot) *slot = std::make_unique<Slot>();
    }
    std::call_once((*slot)->once, [&] { (*slot)->block = std::make_unique<Block>(format, kRows, in, static_cast<uint64_t>(index) + 17); });
    return *(*slot)->block;
  }

 private:
  struct Slot {
    std::once_flag once;
    std::unique_ptr<Block> block;
  };
  std::mutex mutex_;
  std::map<std::tuple<const Format*, int64_t, int>, std::unique_ptr<Slot>> slots_;
};

}  // namespace

Result<void> WeightStore::load_dummy(const LoadOptions& options) {
  CHECK(!index_) << "there are weights to load";
  DG_TRY(allocate());
  Blocks blocks;
  Progress progress("making random weights", static_cast<uint64_t>(bytes_), {.silent = !options.progress});
  auto rows_of = [&](const Item& item, int64_t first, int64_t rows, const Block& block) {
    const Weight from{item.format, block.data.data(), block.scales.data(), rows, item.in};
    std::byte* data = place(item.data_offset);
    if (item.prepared) return backend_.prepare(from, first, item.out, data);
    backend_.write(data + first * item.format->row_bytes(item.in), from.data, static_cast<size_t>(item.format->data_bytes(rows, item.in)));
    if (item.scale_bytes > 0)
      backend_.write(place(item.scale_offset) + item.format->scale_bytes(first, item.in), from.scales,
                     static_cast<size_t>(item.format->scale_bytes(rows, item.in)));
  };
  auto fill = [&](const Item& item) {
    std::byte* data = place(item.data_offset);
    if (!item.constant.empty()) return backend_.write(data, item.constant.data(), item.constant.size() * 4);
    const uint64_t seed = hash_of(item.name);
    if (item.is_vector) {  // norms around 1, biases around 0
      const bool norm = item.name.find("norm") != std::string::npos;
      Normal normal(seed);
      std::vector<float> values(static_cast<size_t>(item.in));
      for (float& v : values) v = (norm ? 1.0f : 0.0f) + 0.02f * normal();
      return backend_.write(data, values.data(), values.size() * 4);
    }
    const bool random = item.weight_class == WeightClass::kRouter || item.out * item.in <= kAlwaysRandom;
    for (int64_t first = 0; first < item.out; first += kRows) {
      const int64_t rows = std::min(kRows, item.out - first);
      const uint64_t row_seed = seed + static_cast<uint64_t>(first);
      if (random) rows_of(item, first, rows, Block(*item.format, rows, item.in, row_seed));
      else rows_of(item, first, rows, blocks.get(*item.format, item.in, static_cast<int>(row_seed * 0x9e3779b97f4a7c15u >> 33) % kBlocks));
    }
  };
  std::atomic<size_t> next{0};
  auto given_up = [&] { return options.cancelled && options.cancelled->load(std::memory_order_relaxed); };
  auto work = [&] {
    for (size_t i; !given_up() && (i = next.fetch_add(1)) < items_.size();) {
      fill(items_[i]);
      progress.add(static_cast<uint64_t>(items_[i].data_bytes + items_[i].scale_bytes));
    }
  };
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
  std::vector<std::thread> pool;
  try {
    for (int i = 1; i < threads; i++) pool.emplace_back(work);
  } catch (const std::system_error&) {  // those that there are do it all
  }
  work();
  for (std::thread& t : pool) t.join();
  if (given_up()) return Error{ErrorKind::kCancelled, "making weights was given up"};
  progress.finish();
  bind();
  return {};
}

}  // namespace dg
