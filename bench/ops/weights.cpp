#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "bench_ops.h"

namespace dg::bench_ops {

double process_cpu_s() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

std::unique_ptr<DeviceMemory> allocate_or_exit(Backend& backend, size_t bytes, const char* purpose) {
  auto memory = backend.allocate(bytes, purpose);
  if (!memory.ok()) {
    fmt::print(stderr, "bench_ops: {}\n", memory.error().message);
    std::exit(exit_code(memory.error().kind));
  }
  return std::move(memory).value();
}

EncodedWeight::EncodedWeight(Backend& backend, const Format& format, int64_t out, int64_t in, bool product) {
  // Encoded rows: whole blocks of scales and of prepare().
  const int64_t rows = std::min<int64_t>(out, Backend::kPrepareRows);
  std::mt19937 random(7);
  std::vector<float> source(static_cast<size_t>(rows * in));
  for (float& v : source) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-4f;
  std::vector<std::byte> data(static_cast<size_t>(format.data_bytes(rows, in))), scales(static_cast<size_t>(format.scale_bytes(rows, in)));
  format.encode(source.data(), rows, in, data.data(), scales.data());
  weight = {.format = &format, .out = out, .in = in};
  const int64_t prepared = product ? backend.prepared_bytes(format, out, in) : 0;
  const int64_t data_bytes = (format.data_bytes(out, in) + 63) / 64 * 64;
  storage =
      allocate_or_exit(backend, static_cast<size_t>(prepared > 0 ? prepared : data_bytes + format.scale_bytes(out, in) + 64), "a weight");
  auto* to = static_cast<std::byte*>(storage->data());
  weight.data = to;
  weight.scales = to + data_bytes;
  weight.prepared = prepared > 0;
  for (int64_t r = 0; r < out; r += rows) {
    const int64_t n = std::min(rows, out - r);
    if (prepared > 0) {
      backend.prepare({.format = &format, .data = data.data(), .scales = scales.data(), .out = n, .in = in}, r, out, to);
      continue;
    }
    std::memcpy(to + r * format.row_bytes(in), data.data(), static_cast<size_t>(n * format.row_bytes(in)));
    const int64_t scale_row = format.scale_bytes(rows, in) / format.scale_row_count(rows);
    if (scale_row > 0)
      std::memcpy(to + data_bytes + r / format.scale_rows * scale_row, scales.data(),
                  static_cast<size_t>(format.scale_row_count(n) * scale_row));
  }
}

EncodedWeight::EncodedWeight(Backend& backend, const EncodedWeight& other) : weight(other.weight) {
  storage = allocate_or_exit(backend, other.storage->bytes(), "a weight");
  std::memcpy(storage->data(), other.storage->data(), other.storage->bytes());
  weight.data = static_cast<std::byte*>(storage->data());
  weight.scales = weight.data + (other.weight.scales - other.weight.data);
}

}  // namespace dg::bench_ops
