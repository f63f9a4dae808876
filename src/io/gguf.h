// The GGUF container (version 2 and 3, little-endian): metadata of typed key-value pairs, tensor infos, then aligned tensor
// bytes. The parser trusts nothing: whatever passes has unique printable tensor names, block formats that this program
// decodes, sizes that do not overflow and byte ranges inside the file that do not overlap.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/mapped_file.h"
#include "quant/format.h"
#include "tensor/dtype.h"

namespace dg {

// Limits of what is accepted; published files stay far below (metadata: 10 MB of tokens and merges).
inline constexpr uint64_t kMaxGgufHeaderBytes = uint64_t{256} << 20;
inline constexpr uint64_t kMaxGgufKeys = 65536;
inline constexpr uint64_t kMaxGgufTensors = 65536;              // of one file; a layer's experts are one tensor
inline constexpr uint64_t kMaxGgufStrings = uint64_t{4} << 20;  // in all arrays of one file

enum class GgufType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
inline constexpr uint32_t kGgufTypeCount = 13;
const char* gguf_type_name(GgufType type);  // "u32", "string", ...
size_t gguf_type_bytes(GgufType type);      // of a number or boolean, else 0

// One value; its bytes lie in the header that holds it.
struct GgufValue {
  GgufType type = GgufType::kU32;
  GgufType element = GgufType::kU32;      // of an array (arrays do not nest); else the same as `type`
  uint64_t count = 1;                     // elements of an array
  std::span<const std::byte> numbers;     // numbers and booleans, little-endian, not aligned
  std::vector<std::string_view> strings;  // strings

  bool is_array() const { return type == GgufType::kArray; }
  // Element i < count, as a whole number (any integer type; also a float with a whole value), number, boolean or string;
  // nothing when the type is another.
  std::optional<int64_t> integer(uint64_t i = 0) const;
  std::optional<double> number(uint64_t i = 0) const;
  std::optional<bool> boolean(uint64_t i = 0) const;
  std::optional<std::string_view> text(uint64_t i = 0) const;
  std::string describe() const;  // "u32 7", "an array of 5 strings", for messages
};

// A type of ggml.h that this program reads: plain elements of `dtype`, or blocks of `format`.
struct GgmlType {
  uint32_t id;
  const char* name;  // "Q4_K"
  Dtype dtype;
  const Format* format;  // never null; bf16, f16 and f32 are formats as well
  bool block;            // blocks of several elements
};
const GgmlType* find_ggml_type(uint32_t id);         // null: unknown or not supported
const GgmlType* ggml_type_of(const Format& format);  // null: GGUF has no such type
std::string ggml_type_text(uint32_t id);             // "IQ2_XXS (16)" or "152, which ggml does not define"

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::array<int64_t, 4> ne{1, 1, 1, 1};  // innermost first: ne[0] = in, ne[1] = out, ne[2] = experts or heads
  int dims = 0;
  uint64_t offset = 0, bytes = 0;  // from the start of the file
};

struct GgufHeader {
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // sorted by offset
  uint64_t data_begin = 0;

  const GgufValue* find(std::string_view key) const {
    auto it = metadata.find(key);
    return it == metadata.end() ? nullptr : &it->second;
  }
  std::vector<std::byte> storage;  // what the values point into: movable, not to be copied
  GgufHeader() = default;
  GgufHeader(GgufHeader&&) = default;
  GgufHeader& operator=(GgufHeader&&) = default;
};

// Parses the header at the start of a file of `file_bytes`; `file_begin` holds at least all of it. `origin` (the path)
// begins every message.
Result<GgufHeader> parse_gguf_header(std::vector<std::byte> file_begin, uint64_t file_bytes, std::string_view origin);

// Reads (not through the mapping) and parses the header of a file.
Result<GgufHeader> read_gguf_header(const MappedFile& file);

// All files of one model with their headers; the metadata is the first one's.
struct GgufModel {
  std::vector<std::string> paths;
  std::vector<GgufHeader> headers;  // as many, never none
  std::vector<MappedFile> files;    // as many
  const GgufValue* find(std::string_view key) const { return headers[0].find(key); }
  const std::string& path() const { return paths[0]; }
};

// The .gguf files of `path` in order: a file (with its siblings when it is named like name-00001-of-00003.gguf), or a
// directory without safetensors that holds one such set. Empty: `path` is no GGUF model, or not there. Errors: a missing
// sibling, several models in one directory.
Result<std::vector<std::string>> find_gguf_files(const std::string& path);
// Opens the files that find_gguf_files() found and checks that they belong together (split.count, split.no).
Result<GgufModel> open_gguf(const std::vector<std::string>& paths);

}  // namespace dg
