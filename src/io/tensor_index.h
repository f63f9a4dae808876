// All tensors of a checkpoint as published: a directory with model.safetensors.index.json and its shards, with
// model.safetensors, or with safetensors files alone, one .safetensors file, or a GGUF file (with the others of its split)
// or a directory with one, whose tensors appear under their Hugging Face names and shapes (gguf_names.h).
//
// Opening checks everything that can be known without reading weights: each header (safetensors.h), that the index and the
// shards name the same tensors, that no tensor exists twice and no shard is missing. What a model needs of them (names,
// shapes, types, finite scales) is the model floor's to check.
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

struct GgufModel;
struct ShardIndex;

// Immutable once opened: safe from any thread.
class TensorIndex {
 public:
  // An error is one line that begins with the path of the file at fault.
  static Result<TensorIndex> open(const std::string& path);
  // Of an opened GGUF model, whose files it takes; headers stay.
  static Result<TensorIndex> from_gguf(GgufModel& model);

  const TensorInfo* find(std::string_view name) const;              // null when there is none
  std::span<const TensorInfo> tensors() const { return tensors_; }  // sorted by (file, offset)

  // The mapped bytes of a tensor of this index. Reading them faults if the file shrank: loading uses
  // file(info.file).read_into(info.offset, ...) instead.
  std::span<const std::byte> data(const TensorInfo& info) const;

  // Rows [first, first + rows) of a tensor of this index in their published row layout (`format`, else `dtype`), in order,
  // whatever their order in the file is: out.size() bytes are read, exactly those of that many rows. A vector has one
  // row. Any thread may call it; working memory is that of the rows asked for (rounded up to whole heads for permuted
  // rows, at most a few MiB for computed ones). The error is the file's.
  Result<void> read_rows(const TensorInfo& info, int64_t first, int64_t rows, std::span<std::byte> out) const;

  const MappedFile& file(int index) const;
  int file_count() const { return static_cast<int>(files_.size()); }
  uint64_t total_bytes() const { return total_bytes_; }  // of all tensors
  // __metadata__ of all files, or GGUF's texts; where files differ the first one's word counts.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  TensorIndex() = default;
  Result<void> read_gguf(const std::vector<std::string>& paths);
  Result<void> take_gguf(GgufModel& model);
  Result<void> read_files(const std::vector<std::string>& paths);
  Result<void> read_computed(const TensorInfo& info, int64_t first, int64_t rows, std::span<std::byte> out) const;
  Result<void> read_rotary(const TensorInfo& info, int64_t first, int64_t rows, uint64_t row_bytes, std::span<std::byte> out) const;
  Result<void> index_names();
  Result<void> compare_with(const ShardIndex& index, const std::string& index_path) const;

  std::vector<MappedFile> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<uint32_t> by_name_;  // indexes into tensors_, sorted by name
  std::map<std::string, std::string> metadata_;
  uint64_t total_bytes_ = 0;
};

}  // namespace dg
