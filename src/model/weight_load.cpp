// WeightStore::load: reading, checking, converting and preparing the matrices, in file order, by several threads.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/progress.h"
#include "base/topology.h"
#include "model/weight_source_parts.h"
#include "model/weight_store_items.h"
#include "quant/f32.h"

namespace dg {
namespace {

constexpr int64_t kCopyBytes = 4 << 20;       // one read straight into its final place
constexpr int64_t kTaskBytes = 4 << 20;       // published bytes of one task that prepares or converts
constexpr int64_t kStepBytes = 512 << 10;     // of them read at a time: they shall stay in the core's L2
constexpr int64_t kConvertBytes = 128 << 10;  // floats of one step of a conversion, for the same reason
constexpr int64_t kRowsMultiple = 128;
static_assert(kRowsMultiple % WeightSource::kReadRows == 0 && kRowsMultiple % Backend::kPrepareRows == 0);

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows of `row_bytes` that make about `bytes`, a multiple of kRowsMultiple.
int64_t rows_of(int64_t bytes, int64_t row_bytes) {
  return std::max(kRowsMultiple, bytes / std::max<int64_t>(1, row_bytes) / kRowsMultiple * kRowsMultiple);
}

// A buffer that only grows; its content is not kept.
std::byte* at_least(std::vector<std::byte>& buffer, int64_t bytes) {
  if (buffer.size() < static_cast<size_t>(bytes)) {
    buffer.clear();
    buffer.resize(static_cast<size_t>(bytes));
  }
  return buffer.data();
}

}  // namespace

// Rows [first, first + rows) of one item.
struct WeightStore::Task {
  const Item* item;
  int64_t first, rows;
};

struct WeightStore::Buffers {
  LoadScratch scratch;
  std::vector<std::byte> data, scales;            // rows as published
  std::vector<std::byte> kept_data, kept_scales;  // rows in the kept format, when they are prepared afterwards
  std::vector<float> floats, row;
  std::vector<int32_t> columns;
  const Item* columns_of = nullptr;
};

Result<void> WeightStore::load_columns(const Item& item) const {
  DG_ASSIGN(std::vector<int32_t> columns, item.source->columns());
  CHECK(static_cast<int64_t>(columns.size()) == item.in) << item.name;
  backend_.write(place(item.columns_offset), columns.data(), columns.size() * sizeof(int32_t));
  return {};
}

// Rows `from` -> the item's format, some at a time.
Result<void> WeightStore::convert(const Item& item, const Weight& from, std::byte* data, std::byte* scales, Buffers& b) const {
  const Format& to = *item.format;
  const bool permuted = item.source->permuted();
  if (permuted && b.columns_of != &item) {
    DG_ASSIGN(b.columns, item.source->columns());
    b.columns_of = &item;
  }
  const int64_t in = item.in;
  const int64_t step = round_up(std::clamp<int64_t>(kConvertBytes / (in * 4), 1, from.out), to.scale_rows);
  b.floats.resize(static_cast<size_t>(step * in));
  b.row.resize(static_cast<size_t>(permuted ? in : 0));
  for (int64_t first = 0; first < from.out; first += step) {
    const int64_t rows = std::min(step, from.out - first);
    for (int64_t r = 0; r < rows; r++) {
      float* out = b.floats.data() + r * in;
      from.decode(first + r, 0, in, permuted ? b.row.data() : out);
      for (int64_t k = 0; permuted && k < in; k++) out[b.columns[static_cast<size_t>(k)]] = b.row[static_cast<size_t>(k)];
    }
    to.encode(b.floats.data(), rows, in, data + first * to.row_bytes(in),
              scales + first / to.scale_rows * to.scale_col_count(in) * to.scale_bytes_each());
  }
  return {};
}

Result<void> WeightStore::run_task(const Task& task, Buffers& b) const {
  const Item& item = *task.item;
  std::byte* data = place(item.data_offset);
  if (!item.source) {
    backend_.write(data, item.constant.data(), item.constant.size() * 4);
    return {};
  }
  const Format &from = *item.source_format, &kept = *item.format;
  const int64_t in = item.in;
  const bool direct = backend_.host_memory();  // rows are read and converted in their final place
  auto scale_offset = [&](int64_t row) { return row / kept.scale_rows * kept.scale_col_count(in) * kept.scale_bytes_each(); };
  b.scratch.task_first = task.first;
  b.scratch.task_rows = task.rows;
  if (item.keeps_columns && task.first == 0) DG_TRY(load_columns(item));
  const bool copied = &from == &kept && !item.prepared;
  const int64_t step = copied && direct ? task.rows : rows_of(copied ? kCopyBytes : kStepBytes, from.row_bytes(in));
  for (int64_t first = task.first; first < task.first + task.rows; first += step) {
    const int64_t rows = std::min(step, task.first + task.rows - first);
    const auto kept_bytes = static_cast<size_t>(kept.data_bytes(rows, in)), scale_bytes = static_cast<size_t>(kept.scale_bytes(rows, in));
    std::byte* data_place = data + first * kept.row_bytes(in);
    std::byte* scale_place = place(item.scale_offset) + scale_offset(first);
    const bool in_place = direct && !item.prepared;
    std::byte* to = in_place ? data_place : nullptr;
    std::byte* scales = in_place ? scale_place : nullptr;
    if (&from == &kept) {
      if (!in_place)
        to = at_least(b.data, static_cast<int64_t>(kept_bytes)), scales = at_least(b.scales, static_cast<int64_t>(scale_bytes));
      DG_TRY(item.source->read(first, rows, to, scales, b.scratch));
    } else {
      Weight source{&from, at_least(b.data, from.data_bytes(rows, in)), at_least(b.scales, from.scale_bytes(rows, in)), rows, in};
      DG_TRY(item.source->read(first, rows, b.data.data(), b.scales.data(), b.scratch));
      if (!in_place)
        to = at_least(b.kept_data, static_cast<int64_t>(kept_bytes)), scales = at_least(b.kept_scales, static_cast<int64_t>(scale_bytes));
      DG_TRY(convert(item, source, to, scales, b));
    }
    if (item.is_vector) {
      int64_t bad = weight_source::find_not_finite(reinterpret_cast<const float*>(to), in);
      if (bad >= 0)
        return input_error(fmt::format("{}: expected finite numbers, found {} at [{}]", where(*item.source->tensors()[0]),
                                       reinterpret_cast<const float*>(to)[bad], bad));
    }
    if (item.prepared) {
      backend_.prepare({&kept, to, scales, rows, in}, first, item.out, data);
    } else if (!direct) {
      backend_.write(data_place, to, kept_bytes);
      if (scale_bytes > 0) backend_.write(scale_place, scales, scale_bytes);
    }
  }
  return {};
}

// By memory node, each in file order.
std::vector<std::vector<WeightStore::Task>> WeightStore::make_tasks(const LoadPlacement& placement) const {
  std::vector<std::vector<Task>> tasks(static_cast<size_t>(placement.nodes()));
  for (const Item& item : items_) {
    int64_t rows = item.out;
    if (item.source) {
      const bool copied = item.format == item.source_format && !item.prepared;
      rows = rows_of(copied ? kCopyBytes : kTaskBytes, item.source_format->row_bytes(item.in));
      if (int64_t strip = item.source->strip_rows(); strip > 0) rows = round_up(strip, kRowsMultiple);
      if (placement.active())
        rows = std::min(rows, std::max(kRowsMultiple, item.out / placement.readers() / kRowsMultiple * kRowsMultiple));
    }
    for (int64_t r = 0; r < item.out; r += rows) {
      const int64_t n = std::min(rows, item.out - r);
      tasks[static_cast<size_t>(placement.node_of_rows(r, n, item.out))].push_back({&item, r, n});
    }
  }
  for (std::vector<Task>& list : tasks)
    std::stable_sort(list.begin(), list.end(), [](const Task& a, const Task& b) {
      auto key = [](const Task& t) {
        if (!t.item->source) return std::pair(-1, uint64_t{0});
        const TensorInfo& info = *t.item->source->tensors()[0];
        return std::pair(info.file, info.offset);
      };
      return key(a) < key(b);
    });
  return tasks;
}

Result<void> WeightStore::load(const LoadOptions& options) {
  CHECK(index_) << "nothing to load from";
  CHECK(backend_.executes());
  DG_TRY(allocate());
  const std::vector<std::vector<Task>> tasks = make_tasks(options.placement);
  uint64_t total = 0;
  for (const Item& item : items_)
    if (item.source) total += item.source->tensors()[0]->bytes;

  Progress progress("loading weights", total, {.silent = !options.progress});
  std::vector<std::atomic<size_t>> next(tasks.size());
  std::atomic<bool> stop{false};
  std::mutex mutex;
  Result<void> result;
  auto work_on = [&](size_t node, Buffers& buffers) {
    for (size_t i; !stop.load(std::memory_order_relaxed) && (i = next[node].fetch_add(1)) < tasks[node].size();) {
      if (options.cancelled && options.cancelled->load(std::memory_order_relaxed)) {
        std::lock_guard lock(mutex);
        if (result.ok()) result = Error{ErrorKind::kCancelled, "loading weights was given up"};
        stop = true;
        return;
      }
      const Task& task = tasks[node][i];
      Result<void> done = run_task(task, buffers);
      if (!done.ok()) {
        std::lock_guard lock(mutex);
        if (result.ok()) result = done;
        stop = true;
        return;
      }
      if (const WeightSource* source = task.item->source.get())
        progress.add(static_cast<uint64_t>(static_cast<double>(source->tensors()[0]->bytes) * static_cast<double>(task.rows) /
                                           static_cast<double>(task.item->out)));
    }
  };
  unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::min(8u, cores));
  auto work = [&](int thread) {
    Buffers buffers;
    for (int node : options.placement.nodes_of_thread(thread, threads)) {
      // Refused (a container may): the pages land elsewhere, which costs speed only.
      if (options.placement.active()) (options.bind ? options.bind : pin_current_thread)(options.placement.cpus(node));
      work_on(static_cast<size_t>(node), buffers);
    }
  };
  std::vector<std::thread> pool;
  // The calling thread takes part as loader 0, except when it would be left bound to a node.
  const int first = options.placement.active() ? 0 : 1;
  std::vector<int> mine;  // loaders that found no thread
  for (int i = 0; i < threads; i++) {
    if (i < first || !mine.empty()) {
      mine.push_back(i);
      continue;
    }
    try {
      pool.emplace_back(work, i);
    } catch (const std::system_error&) {
      mine.push_back(i);
    }
  }
  for (int i : mine) work(i);
  for (std::thread& t : pool) t.join();
  if (!result.ok()) return result;
  progress.finish();
  DG_TRY(check_columns());
  bind();
  return {};
}

}  // namespace dg
