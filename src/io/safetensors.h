// The safetensors container: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then
// the tensors' bytes without gaps. The parser trusts nothing: whatever passes has unique printable names, shapes whose
// products do not overflow, and byte ranges that fill the file exactly.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/mapped_file.h"
#include "io/tensor_info.h"

namespace dg {

// Limits of what is accepted; published checkpoints stay far below (V3: 92,000 tensors in 163 files).
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit
inline constexpr size_t kMaxTensorsPerFile = size_t{1} << 20;
inline constexpr size_t kMaxTensorDims = 16;
inline constexpr size_t kMaxTensorNameBytes = 512;
inline constexpr size_t kMaxMetadataEntries = size_t{1} << 16;

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // sorted by offset; file = 0
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // offset of the first tensor byte from the start of the file
};

// Parses the header at the start of a file. `file_begin` holds at least the length field and the header, `file_bytes` is the
// size of the whole file, `origin` (its path) begins every message.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> file_begin, uint64_t file_bytes, std::string_view origin);

// Reads (not through the mapping, so a shrinking file is an error and no SIGBUS) and parses the header of a file.
Result<SafetensorsHeader> read_safetensors_header(const MappedFile& file);

struct TensorToWrite {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// Writes a file that any safetensors reader accepts, tensors with wider elements first so that each is aligned to its
// dtype. The file appears under `path` only when it is complete. Errors: a tensor whose name repeats or whose data does
// not have the size of its shape, and whatever the file system says.
Result<void> write_safetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace dg
