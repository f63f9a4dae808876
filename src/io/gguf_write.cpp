#include "io/gguf_write.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "io/error_text.h"

namespace dg {
namespace {

constexpr uint64_t kAlignment = 32;
constexpr size_t kMaxGgmlName = 63;

template <typename T>
void put(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}
void put_text(std::string& out, std::string_view text) {
  put(out, uint64_t{text.size()});
  out += text;
}
uint64_t padding(uint64_t bytes) { return (kAlignment - bytes % kAlignment) % kAlignment; }

Result<void> check_gguf_tensors(const std::string& path, const std::vector<GgufTensorToWrite>& tensors) {
  std::vector<std::string_view> names;
  for (const GgufTensorToWrite& t : tensors) {
    names.push_back(t.name);
    if (t.name.empty() || t.name.size() > kMaxGgmlName)
      return input_error(fmt::format("{}: tensor {}: expected a name of 1 to {} bytes", path, quote_text(t.name), kMaxGgmlName));
    if (!ggml_type_of(*t.format))
      return input_error(fmt::format("{}: tensor {}: GGUF has no type for the format {}", path, t.name, t.format->name));
    const bool bad = t.shape.empty() || t.shape.size() > 4 || std::any_of(t.shape.begin(), t.shape.end(), [](int64_t d) { return d < 1; });
    if (bad || t.shape.back() % t.format->pack_elements != 0)
      return input_error(fmt::format("{}: tensor {}: expected 1 to 4 dimensions, the last a multiple of {} for {}, found {}", path, t.name,
                                     t.format->pack_elements, t.format->name, t.shape.empty() ? 0 : t.shape.back()));
  }
  std::sort(names.begin(), names.end());
  if (auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
    return input_error(fmt::format("{}: tensor {} is given twice", path, quote_text(*twice)));
  return {};
}

}  // namespace

void GgufMetadata::key(std::string_view key, GgufType type) {
  put_text(bytes_, key);
  put(bytes_, static_cast<uint32_t>(type));
  count_++;
}
void GgufMetadata::add_u32(std::string_view name, uint32_t value) {
  key(name, GgufType::kU32);
  put(bytes_, value);
}
void GgufMetadata::add_f32(std::string_view name, float value) {
  key(name, GgufType::kF32);
  put(bytes_, value);
}
void GgufMetadata::add_bool(std::string_view name, bool value) {
  key(name, GgufType::kBool);
  put(bytes_, static_cast<uint8_t>(value));
}
void GgufMetadata::add_text(std::string_view name, std::string_view value) {
  key(name, GgufType::kString);
  put_text(bytes_, value);
}
void GgufMetadata::add_texts(std::string_view name, std::span<const std::string> values) {
  key(name, GgufType::kArray);
  put(bytes_, static_cast<uint32_t>(GgufType::kString));
  put(bytes_, uint64_t{values.size()});
  for (const std::string& value : values) put_text(bytes_, value);
}
void GgufMetadata::add_i32s(std::string_view name, std::span<const int32_t> values) {
  key(name, GgufType::kArray);
  put(bytes_, static_cast<uint32_t>(GgufType::kI32));
  put(bytes_, uint64_t{values.size()});
  for (int32_t value : values) put(bytes_, value);
}

uint64_t GgufTensorToWrite::bytes() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); i++) rows *= shape[i];
  return static_cast<uint64_t>(format->data_bytes(rows, shape.back()));
}

Result<GgufWriter> GgufWriter::create(const std::string& path, const GgufMetadata& metadata, std::vector<GgufTensorToWrite> tensors) {
  DG_TRY(check_gguf_tensors(path, tensors));
  std::string header = "GGUF";
  put(header, uint32_t{3});
  put(header, uint64_t{tensors.size()});
  put(header, metadata.count());
  header += metadata.bytes();
  uint64_t offset = 0;
  for (const GgufTensorToWrite& t : tensors) {
    put_text(header, t.name);
    put(header, static_cast<uint32_t>(t.shape.size()));
    for (size_t d = t.shape.size(); d-- > 0;) put(header, t.shape[d]);
    put(header, ggml_type_of(*t.format)->id);
    put(header, offset);
    offset += t.bytes() + padding(t.bytes());
  }
  header.append(padding(header.size()), '\0');
  DG_ASSIGN(PartialFile file, PartialFile::create(path));
  GgufWriter writer(std::move(file), std::move(tensors));
  DG_TRY(writer.file_.write(std::as_bytes(std::span(header))));
  writer.written_ = header.size();
  return writer;
}

Result<void> GgufWriter::write(std::span<const std::byte> data) {
  static constexpr std::byte kZeros[kAlignment] = {};
  while (!data.empty()) {
    CHECK(at_ < tensors_.size()) << "more bytes than the tensors have";
    const uint64_t bytes = tensors_[at_].bytes();
    const auto part = static_cast<size_t>(std::min<uint64_t>(data.size(), bytes - done_));
    DG_TRY(file_.write(data.first(part)));
    data = data.subspan(part);
    done_ += part;
    written_ += part;
    if (done_ < bytes) continue;
    DG_TRY(file_.write(std::span(kZeros).first(static_cast<size_t>(padding(bytes)))));
    written_ += padding(bytes);
    done_ = 0;
    at_++;
  }
  return {};
}

Result<void> GgufWriter::commit() {
  CHECK(at_ == tensors_.size() && done_ == 0) << "tensor " << at_ << " is not complete";
  return file_.commit();
}

}  // namespace dg
