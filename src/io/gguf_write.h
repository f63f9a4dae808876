// Writing GGUF version 3 files, tensor by tensor, so that a model larger than memory can be written.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/gguf.h"
#include "io/partial_file.h"

namespace dg {

// Metadata in the order in which it is written; keys must differ.
class GgufMetadata {
 public:
  void add_u32(std::string_view key, uint32_t value);
  void add_f32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_text(std::string_view key, std::string_view value);
  void add_texts(std::string_view key, std::span<const std::string> values);
  void add_i32s(std::string_view key, std::span<const int32_t> values);

  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }  // as the file has them

 private:
  void key(std::string_view key, GgufType type);
  uint64_t count_ = 0;
  std::string bytes_;
};

struct GgufTensorToWrite {
  std::string name;  // ggml's: at most 63 bytes
  const Format* format = nullptr;
  std::vector<int64_t> shape;  // outermost first, at most 4; the last is a whole number of the format's packs
  uint64_t bytes() const;
};

// The bytes of all tensors are given in the order of the list, each whole, in pieces of any size; padding is added. The
// file appears under its name with commit().
class GgufWriter {
 public:
  // Errors: a format that GGUF has no type for, rows of broken packs, names that are too long or repeat, the file system.
  static Result<GgufWriter> create(const std::string& path, const GgufMetadata& metadata, std::vector<GgufTensorToWrite> tensors);
  Result<void> write(std::span<const std::byte> data);
  Result<void> commit();  // CHECKs that every tensor is complete
  uint64_t written() const { return written_; }

 private:
  GgufWriter(PartialFile file, std::vector<GgufTensorToWrite> tensors) : file_(std::move(file)), tensors_(std::move(tensors)) {}
  PartialFile file_;
  std::vector<GgufTensorToWrite> tensors_;
  size_t at_ = 0;      // tensor under way
  uint64_t done_ = 0;  // bytes of it
  uint64_t written_ = 0;
};

}  // namespace dg
