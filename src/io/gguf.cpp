#include "io/gguf.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "io/error_text.h"
#include "io/safetensors.h"

namespace dg {
namespace {

constexpr uint64_t kFirstRead = uint64_t{1} << 20;
constexpr size_t kMaxKeyBytes = 1024;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

bool printable(std::string_view name) {
  const bool control = std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7F; });
  return !name.empty() && name.size() <= kMaxTensorNameBytes && !control;
}

class GgufParser {
 public:
  GgufParser(std::vector<std::byte> begin, uint64_t file_bytes, std::string_view origin) : file_bytes_(file_bytes), origin_(origin) {
    header_.storage = std::move(begin);
  }

  Result<GgufHeader> run() {
    uint32_t magic = 0, version = 0;
    if (!take(&magic) || !take(&version)) return ended("the magic number and version");
    if (magic != 0x46554747)
      return error(
          fmt::format("expected a GGUF file (beginning with \"GGUF\"), found the bytes {:02x} {:02x} {:02x} {:02x}; give a model file",
                      magic & 255, magic >> 8 & 255, magic >> 16 & 255, magic >> 24));
    if (version != 2 && version != 3) {
      const bool swapped = version == 0x02000000 || version == 0x03000000;
      return error(fmt::format("expected GGUF version 2 or 3, found {}; convert the model again with a current converter",
                               swapped ? std::string("a big-endian file") : std::to_string(version)));
    }
    uint64_t tensors = 0, keys = 0;
    if (!take(&tensors) || !take(&keys)) return ended("the counts of tensors and metadata keys");
    if (tensors > kMaxGgufTensors) return error(fmt::format("expected at most {} tensors, found {}", kMaxGgufTensors, tensors));
    if (keys > kMaxGgufKeys) return error(fmt::format("expected at most {} metadata keys, found {}", kMaxGgufKeys, keys));
    for (uint64_t i = 0; i < keys; i++) DG_TRY(read_pair(i));
    for (uint64_t i = 0; i < tensors; i++) DG_TRY(read_tensor(i));
    DG_TRY(place_tensors());
    return std::move(header_);
  }
  bool ended_early() const { return ended_; }

 private:
  Error error(std::string_view what) const { return input_error(fmt::format("{}: {}", origin_, what)); }
  Error ended(std::string_view where) {
    ended_ = true;
    return error(fmt::format("the file ends within {}; download it again", where));
  }

  size_t left() const { return header_.storage.size() - at_; }
  template <typename T>
  bool take(T* value) {
    if (left() < sizeof(T)) return false;
    std::memcpy(value, header_.storage.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return true;
  }
  bool take_text(std::string_view* text) {
    uint64_t length = 0;
    if (!take(&length) || length > left()) return false;
    *text = {reinterpret_cast<const char*>(header_.storage.data() + at_), static_cast<size_t>(length)};
    at_ += static_cast<size_t>(length);
    return true;
  }
  bool take_numbers(uint64_t bytes, std::span<const std::byte>* numbers) {
    if (bytes > left()) return false;
    *numbers = {header_.storage.data() + at_, static_cast<size_t>(bytes)};
    at_ += static_cast<size_t>(bytes);
    return true;
  }

  Result<void> read_pair(uint64_t index) {
    std::string_view key;
    if (!take_text(&key)) return ended(fmt::format("the name of metadata key {}", index));
    if (!printable(key) || key.size() > kMaxKeyBytes)
      return error(fmt::format("metadata key {}: expected a name of 1 to {} printable ASCII characters, found {}", index, kMaxKeyBytes,
                               quote_text(key, 60)));
    uint32_t type = 0;
    if (!take(&type)) return ended(fmt::format("metadata key {}", key));
    GgufValue value;
    DG_TRY(read_value(key, type, value));
    if (!header_.metadata.emplace(key, std::move(value)).second) return error(fmt::format("metadata key {} is given twice", key));
    return {};
  }

  Result<void> read_value(std::string_view key, uint32_t type, GgufValue& value) {
    if (type >= kGgufTypeCount) return error(fmt::format("metadata key {}: expected a type from 0 to 12, found {}", key, type));
    value.type = value.element = static_cast<GgufType>(type);
    if (value.type == GgufType::kArray) {
      uint32_t element = 0;
      if (!take(&element) || !take(&value.count)) return ended(fmt::format("metadata key {}", key));
      if (element >= kGgufTypeCount || element == static_cast<uint32_t>(GgufType::kArray))
        return error(
            fmt::format("metadata key {}: expected an array of numbers, booleans or strings, found element type {}", key, element));
      value.element = static_cast<GgufType>(element);
    }
    if (value.element == GgufType::kString) {
      // Each string takes 8 bytes of the file at least, so a count cannot ask for more memory than the file pays for.
      if (value.count > left() / 8) return ended(fmt::format("metadata key {}: {} strings", key, value.count));
      if (value.count > kMaxGgufStrings - strings_)
        return error(fmt::format("metadata key {}: expected at most {} strings in all arrays, found more", key, kMaxGgufStrings));
      strings_ += value.count;
      value.strings.resize(static_cast<size_t>(value.count));
      for (std::string_view& text : value.strings)
        if (!take_text(&text)) return ended(fmt::format("metadata key {}", key));
      return {};
    }
    const uint64_t each = gguf_type_bytes(value.element);
    if (value.count > left() / each || !take_numbers(value.count * each, &value.numbers))
      return ended(fmt::format("metadata key {}: {} numbers", key, value.count));
    return {};
  }

  Result<void> read_tensor(uint64_t index) {
    std::string_view name;
    if (!take_text(&name)) return ended(fmt::format("the name of tensor {}", index));
    if (!printable(name))
      return error(fmt::format("tensor {}: expected a name of 1 to {} printable ASCII characters, found {}", index, kMaxTensorNameBytes,
                               quote_text(name, 60)));
    GgufTensor tensor;
    tensor.name = name;
    uint32_t dims = 0, type = 0;
    if (!take(&dims)) return ended("tensor " + tensor.name);
    if (dims < 1 || dims > 4) return error(fmt::format("tensor {}: expected 1 to 4 dimensions, found {}", name, dims));
    tensor.dims = static_cast<int>(dims);
    int64_t elements = 1;
    for (size_t i = 0; i < dims; i++) {
      if (!take(&tensor.ne[i])) return ended("tensor " + tensor.name);
      if (tensor.ne[i] < 1 || __builtin_mul_overflow(elements, tensor.ne[i], &elements))
        return error(
            fmt::format("tensor {}: dimension {}: expected a positive number (the product below 2^63), found {}", name, i, tensor.ne[i]));
    }
    if (!take(&type) || !take(&tensor.offset)) return ended("tensor " + tensor.name);
    tensor.type = find_ggml_type(type);
    if (!tensor.type)
      return error(
          fmt::format("tensor {}: type {} is not supported; use a file in one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, "
                      "Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4",
                      name, ggml_type_text(type)));
    const Format& format = *tensor.type->format;
    if (tensor.ne[0] % format.pack_elements != 0)
      return error(fmt::format("tensor {}: type {}: expected rows of whole blocks of {} elements, found rows of {}", name,
                               tensor.type->name, format.pack_elements, tensor.ne[0]));
    int64_t bytes = 0;
    if (__builtin_mul_overflow(elements / format.pack_elements, int64_t{format.pack_bytes}, &bytes))
      return error(fmt::format("tensor {}: expected less than 2^63 bytes, found {} elements", name, elements));
    tensor.bytes = static_cast<uint64_t>(bytes);
    header_.tensors.push_back(std::move(tensor));
    return {};
  }

  // Offsets count from the data section, which begins at the next multiple of the alignment.
  Result<void> place_tensors() {
    uint64_t alignment = 32;
    if (const GgufValue* value = header_.find("general.alignment")) {
      const std::optional<int64_t> given = value->is_array() ? std::nullopt : value->integer();
      if (!given || *given < 1 || static_cast<uint64_t>(*given) > kMaxAlignment || !std::has_single_bit(static_cast<uint64_t>(*given)))
        return error(fmt::format("general.alignment: expected a power of two up to {}, found {}", kMaxAlignment, value->describe()));
      alignment = static_cast<uint64_t>(*given);
    }
    header_.data_begin = (at_ + alignment - 1) / alignment * alignment;
    for (GgufTensor& t : header_.tensors) {
      if (t.offset % alignment != 0)
        return error(fmt::format("tensor {}: offset: expected a multiple of {}, found {}", t.name, alignment, t.offset));
      const uint64_t room = file_bytes_ > header_.data_begin ? file_bytes_ - header_.data_begin : 0;
      if (t.offset > room || t.bytes > room - t.offset)
        return error(
            fmt::format("tensor {}: {} bytes at offset {} of the data are outside the file, which has {} bytes of data; download it again",
                        t.name, t.bytes, t.offset, room));
      t.offset += header_.data_begin;
    }
    std::vector<GgufTensor>& tensors = header_.tensors;
    std::stable_sort(tensors.begin(), tensors.end(), [](const GgufTensor& a, const GgufTensor& b) { return a.offset < b.offset; });
    for (size_t i = 1; i < tensors.size(); i++)
      if (tensors[i].offset < tensors[i - 1].offset + tensors[i - 1].bytes)
        return error(fmt::format("tensor {}: overlaps tensor {}; download the file again", tensors[i].name, tensors[i - 1].name));
    std::vector<std::string_view> names;
    names.reserve(tensors.size());
    for (const GgufTensor& t : tensors) names.push_back(t.name);
    std::sort(names.begin(), names.end());
    if (auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
      return error(fmt::format("tensor {} is given twice", *twice));
    return {};
  }

  GgufHeader header_;
  uint64_t file_bytes_;
  std::string origin_;
  size_t at_ = 0;
  uint64_t strings_ = 0;
  bool ended_ = false;
};

template <typename T>
T gguf_load(std::span<const std::byte> bytes, uint64_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  static constexpr const char* kNames[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

size_t gguf_type_bytes(GgufType type) {
  static constexpr size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

std::optional<int64_t> GgufValue::integer(uint64_t i) const {
  if (i >= count) return std::nullopt;
  switch (element) {
    case GgufType::kU8: return gguf_load<uint8_t>(numbers, i);
    case GgufType::kI8: return gguf_load<int8_t>(numbers, i);
    case GgufType::kU16: return gguf_load<uint16_t>(numbers, i);
    case GgufType::kI16: return gguf_load<int16_t>(numbers, i);
    case GgufType::kU32: return gguf_load<uint32_t>(numbers, i);
    case GgufType::kI32: return gguf_load<int32_t>(numbers, i);
    case GgufType::kI64: return gguf_load<int64_t>(numbers, i);
    case GgufType::kU64: {
      const auto value = gguf_load<uint64_t>(numbers, i);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    case GgufType::kF32:
    case GgufType::kF64: {
      const double value = *number(i);
      if (!(std::fabs(value) < 0x1p53) || std::floor(value) != value) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default: return std::nullopt;
  }
}

std::optional<double> GgufValue::number(uint64_t i) const {
  if (i >= count) return std::nullopt;
  if (element == GgufType::kF32) return gguf_load<float>(numbers, i);
  if (element == GgufType::kF64) return gguf_load<double>(numbers, i);
  if (element == GgufType::kU64) return static_cast<double>(gguf_load<uint64_t>(numbers, i));
  if (auto whole = integer(i)) return static_cast<double>(*whole);
  return std::nullopt;
}

std::optional<bool> GgufValue::boolean(uint64_t i) const {
  if (i >= count || element != GgufType::kBool) return std::nullopt;
  return numbers[static_cast<size_t>(i)] != std::byte{0};
}

std::optional<std::string_view> GgufValue::text(uint64_t i) const {
  if (i >= count || element != GgufType::kString) return std::nullopt;
  return strings[static_cast<size_t>(i)];
}

std::string GgufValue::describe() const {
  if (is_array()) return fmt::format("an array of {} {} values", count, gguf_type_name(element));
  if (auto value = text()) return "the string " + quote_text(*value, 60);
  if (auto value = boolean()) return *value ? "true" : "false";
  return fmt::format("{} {}", gguf_type_name(type), number().value_or(0));
}

Result<GgufHeader> parse_gguf_header(std::vector<std::byte> file_begin, uint64_t file_bytes, std::string_view origin) {
  return GgufParser(std::move(file_begin), file_bytes, origin).run();
}

Result<GgufHeader> read_gguf_header(const MappedFile& file) {
  // Nothing tells the size of the header; most of it is the vocabulary, and the second read has all of a usual one.
  for (uint64_t size = kFirstRead;; size *= 16) {
    size = std::min({size, file.size(), kMaxGgufHeaderBytes});
    std::vector<std::byte> begin(static_cast<size_t>(size));
    DG_TRY(file.read_into(0, begin));
    GgufParser parser(std::move(begin), file.size(), file.path());
    Result<GgufHeader> header = parser.run();
    if (header.ok() || !parser.ended_early() || size == file.size()) return header;
    if (size == kMaxGgufHeaderBytes)
      return input_error(
          fmt::format("{}: expected metadata and tensor list within {} bytes, found more", file.path(), kMaxGgufHeaderBytes));
  }
}

}  // namespace dg
