// WeightStore::load: reading, checking and converting the tensors, in file order, by several threads.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/progress.h"
#include "model/weight_store_items.h"
#include "quant/f32.h"
#include "quant/formats.h"
#include "quant/fp8_block.h"

namespace dg {
namespace {

constexpr int64_t kCopyBytes = 4 << 20;     // one read straight into its final place
constexpr int64_t kConvertBytes = 1 << 20;  // floats of one conversion step

// Index of the first NaN code (0x7f, 0xff) among E4M3 bytes, or -1. The loop vectorises; the search runs on failure only.
int64_t find_e4m3_nan(const uint8_t* p, int64_t n) {
  unsigned found = 0;
  for (int64_t i = 0; i < n; i++) found |= (p[i] & 0x7f) == 0x7f;
  if (!found) return -1;
  for (int64_t i = 0; i < n; i++)
    if ((p[i] & 0x7f) == 0x7f) return i;
  return -1;
}

int64_t find_not_finite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!std::isfinite(x[i])) return i;
  return -1;
}

}  // namespace

// Rows [first, first + rows) of one item.
struct WeightStore::Task {
  const Item* item;
  int64_t first, rows;
};

Result<void> WeightStore::copy_scales(const Item& item) const {
  auto* to = reinterpret_cast<float*>(static_cast<std::byte*>(memory_->data()) + item.scale_offset);
  auto count = static_cast<size_t>(item.scale->bytes / 4);
  DG_TRY(index_->file(item.scale->file).read_into(item.scale->offset, {reinterpret_cast<std::byte*>(to), count * 4}));
  int64_t bad = find_not_finite(to, static_cast<int64_t>(count));
  if (bad >= 0)
    return input_error(fmt::format("{}: expected finite scales, found {} at block [{}, {}]", where(*item.scale), to[bad],
                                   bad / item.scale->shape[1], bad % item.scale->shape[1]));
  return {};
}

Result<void> WeightStore::run_task(const Task& task, std::vector<std::byte>& raw, std::vector<float>& floats) const {
  const Item& item = *task.item;
  auto* data = static_cast<std::byte*>(memory_->data()) + item.data_offset;
  if (!item.source) {
    std::memcpy(data, item.constant.data(), item.constant.size() * 4);
    return {};
  }
  const MappedFile& file = index_->file(item.source->file);
  int64_t source_row = item.source_format->row_bytes(item.in);
  uint64_t offset = item.source->offset + static_cast<uint64_t>(task.first * source_row);
  auto source_bytes = static_cast<size_t>(task.rows * source_row);
  bool fp8 = item.source_format == &kFp8BlockFormat;
  auto check_fp8 = [&](const std::byte* bytes) -> Result<void> {
    int64_t bad = find_e4m3_nan(reinterpret_cast<const uint8_t*>(bytes), static_cast<int64_t>(source_bytes));
    if (bad < 0) return {};
    return input_error(
        fmt::format("{}: expected numbers, found NaN at [{}, {}]", where(*item.source), task.first + bad / item.in, bad % item.in));
  };

  if (item.format == item.source_format) {
    std::byte* to = data + task.first * source_row;
    DG_TRY(file.read_into(offset, {to, source_bytes}));
    if (fp8) {
      if (task.first == 0) DG_TRY(copy_scales(item));
      return check_fp8(to);
    }
    return {};
  }

  raw.resize(source_bytes);
  floats.resize(static_cast<size_t>(task.rows * item.in));
  DG_TRY(file.read_into(offset, raw));
  std::vector<float> scales;
  Weight source{item.source_format, raw.data(), nullptr, task.rows, item.in};
  if (fp8) {
    DG_TRY(check_fp8(raw.data()));
    int64_t columns = item.scale->shape[1], first_block = task.first / kFp8Block;
    int64_t blocks = (task.first + task.rows + kFp8Block - 1) / kFp8Block - first_block;
    scales.resize(static_cast<size_t>(blocks * columns));
    DG_TRY(
        index_->file(item.scale->file)
            .read_into(item.scale->offset + static_cast<uint64_t>(first_block * columns * 4), std::as_writable_bytes(std::span(scales))));
    int64_t bad = find_not_finite(scales.data(), blocks * columns);
    if (bad >= 0)
      return input_error(fmt::format("{}: expected finite scales, found {} at block [{}, {}]", where(*item.scale),
                                     scales[static_cast<size_t>(bad)], first_block + bad / columns, bad % columns));
    source.scales = reinterpret_cast<const std::byte*>(scales.data());
  }
  // A task starts at a multiple of 128 rows, so row r of the buffer lies in the scale block r / 128 of the buffer.
  for (int64_t r = 0; r < task.rows; r++) source.decode(r, 0, item.in, floats.data() + r * item.in);
  if (!item.tensors.empty()) {
    int64_t bad = find_not_finite(floats.data(), item.in);
    if (bad >= 0)
      return input_error(
          fmt::format("{}: expected finite numbers, found {} at [{}]", where(*item.source), floats[static_cast<size_t>(bad)], bad));
  }
  std::byte* scales_to = static_cast<std::byte*>(memory_->data()) + item.scale_offset;
  if (item.format->scale_type != ScaleType::kNone)
    scales_to += task.first / item.format->scale_rows * item.format->scale_col_count(item.in) * item.format->scale_bytes_each();
  item.format->encode(floats.data(), task.rows, item.in, data + task.first * item.format->row_bytes(item.in), scales_to);
  return {};
}

Result<void> WeightStore::load(const LoadOptions& options) {
  CHECK(index_) << "nothing to load from";
  CHECK(backend_.executes());
  DG_TRY(allocate());
  std::vector<Task> tasks;
  uint64_t total = 0;
  for (const Item& item : items_) {
    bool convert = item.format != item.source_format;
    int64_t row = std::max<int64_t>(1, convert ? item.in * 4 : item.format->row_bytes(item.in));
    int64_t rows = std::max<int64_t>(1, (convert ? kConvertBytes : kCopyBytes) / row);
    rows = (rows + kFp8Block - 1) / kFp8Block * kFp8Block;
    for (int64_t r = 0; r < item.out; r += rows) tasks.push_back({&item, r, std::min(rows, item.out - r)});
    if (item.source) total += item.source->bytes;
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    auto key = [](const Task& t) {
      return t.item->source ? std::pair(t.item->source->file, t.item->source->offset) : std::pair(-1, uint64_t{0});
    };
    return key(a) < key(b);
  });

  Progress progress("loading weights", total, {.silent = !options.progress});
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  Result<void> result;
  auto work = [&] {
    std::vector<std::byte> raw;
    std::vector<float> floats;
    for (size_t i; !stop.load(std::memory_order_relaxed) && (i = next.fetch_add(1)) < tasks.size();) {
      const Task& task = tasks[i];
      Result<void> done = run_task(task, raw, floats);
      if (!done.ok()) {
        std::lock_guard lock(mutex);
        if (result.ok()) result = done;
        stop = true;
        return;
      }
      if (task.item->source) progress.add(static_cast<uint64_t>(task.rows * task.item->source_format->row_bytes(task.item->in)));
    }
  };
  unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  int threads = options.threads > 0 ? options.threads : static_cast<int>(std::min(8u, cores));
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; i++) pool.emplace_back(work);
  work();
  for (std::thread& t : pool) t.join();
  if (!result.ok()) return result;
  progress.finish();
  bind();
  return {};
}

}  // namespace dg
