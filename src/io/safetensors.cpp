#include "io/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "io/error_text.h"
#include "io/json_events.h"
#include "io/shape_text.h"

namespace dg {
namespace {

using Kind = JsonEvent::Kind;

constexpr uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

std::string known_dtypes() {
  std::string out;
  for (int i = 0; i < kDtypeCount; i++) (out += i == 0 ? "" : " ") += dtype_name(static_cast<Dtype>(i));
  return out;
}

// Collects the header's tensors; `offset` of each is still relative to the data section.
class HeaderListener : public JsonListener {
 public:
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;

  bool on(const JsonEvent& event) override {
    switch (state_) {
      case State::kDocument: return event.kind == Kind::kBeginObject ? go(State::kTop) : unexpected("the header", "an object", event);
      case State::kTop: return on_top(event);
      case State::kMetadataBegin:
        return event.kind == Kind::kBeginObject ? go(State::kMetadata) : unexpected("__metadata__", "an object", event);
      case State::kMetadata: return on_metadata(event);
      case State::kMetadataValue: return on_metadata_value(event);
      case State::kTensorBegin:
        return event.kind == Kind::kBeginObject ? go(State::kTensor)
                                                : unexpected(where(), "an object with dtype, shape and data_offsets", event);
      case State::kTensor: return on_tensor(event);
      case State::kDtype: return on_dtype(event);
      case State::kShapeBegin:
        return event.kind == Kind::kBeginArray ? go(State::kShape) : unexpected(where() + ": shape", "an array", event);
      case State::kShape: return on_shape(event);
      case State::kOffsetsBegin:
        return event.kind == Kind::kBeginArray ? go(State::kOffsets) : unexpected(where() + ": data_offsets", "[begin, end]", event);
      case State::kOffsets: return on_offsets(event);
    }
    return false;
  }

 private:
  enum class State {
    kDocument,
    kTop,
    kMetadataBegin,
    kMetadata,
    kMetadataValue,
    kTensorBegin,
    kTensor,
    kDtype,
    kShapeBegin,
    kShape,
    kOffsetsBegin,
    kOffsets
  };

  bool go(State next) {
    state_ = next;
    return true;
  }
  std::string where() const { return "tensor " + quote_text(current_.name); }
  bool unexpected(std::string_view field, std::string_view expected, const JsonEvent& event) {
    return fail(fmt::format("{}: expected {}, found {}", field, expected, describe(event)));
  }

  bool on_top(const JsonEvent& event) {
    if (event.kind == Kind::kEndObject) return true;  // the library refuses anything after it
    // Within an object only a key can come.
    if (*event.text == kMetadataKey) {
      if (has_metadata_) return fail("__metadata__ appears twice in the header");
      has_metadata_ = true;
      return go(State::kMetadataBegin);
    }
    current_ = {};
    current_.name = std::move(*event.text);
    has_dtype_ = has_shape_ = false;
    offset_count_.reset();
    if (current_.name.size() > kMaxTensorNameBytes)
      return fail(fmt::format("{}: a name of {} bytes, at most {} are accepted", where(), current_.name.size(), kMaxTensorNameBytes));
    if (std::any_of(current_.name.begin(), current_.name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }))
      return fail(where() + ": the name contains a control character");
    if (tensors.size() == kMaxTensorsPerFile) return fail(fmt::format("more than {} tensors in one file", kMaxTensorsPerFile));
    return go(State::kTensorBegin);
  }

  bool on_metadata(const JsonEvent& event) {
    if (event.kind == Kind::kEndObject) return go(State::kTop);
    metadata_key_ = std::move(*event.text);
    if (metadata.size() == kMaxMetadataEntries) return fail(fmt::format("__metadata__: more than {} entries", kMaxMetadataEntries));
    return go(State::kMetadataValue);
  }

  bool on_metadata_value(const JsonEvent& event) {
    if (event.kind != Kind::kString) return unexpected("__metadata__: " + quote_text(metadata_key_), "a string", event);
    bool added = metadata.emplace(metadata_key_, std::move(*event.text)).second;
    if (!added) return fail(fmt::format("__metadata__: the key {} appears twice", quote_text(metadata_key_)));
    return go(State::kMetadata);
  }

  bool on_tensor(const JsonEvent& event) {
    if (event.kind == Kind::kEndObject) return end_tensor();
    const std::string& key = *event.text;
    bool again = (key == "dtype" && has_dtype_) || (key == "shape" && has_shape_) || (key == "data_offsets" && offset_count_);
    if (again) return fail(fmt::format("{}: {} appears twice", where(), key));
    if (key == "dtype") return go(State::kDtype);
    if (key == "shape") return go(State::kShapeBegin);
    if (key != "data_offsets") return fail(fmt::format("{}: expected dtype, shape and data_offsets, found {}", where(), describe(event)));
    offset_count_ = 0;
    return go(State::kOffsetsBegin);
  }

  bool on_dtype(const JsonEvent& event) {
    if (event.kind != Kind::kString) return unexpected(where() + ": dtype", "a string", event);
    if (!parse_dtype(*event.text, &current_.dtype))
      return fail(fmt::format("{}: dtype: expected one of {}, found {}", where(), known_dtypes(), quote_text(*event.text, 40)));
    has_dtype_ = true;
    return go(State::kTensor);
  }

  bool on_shape(const JsonEvent& event) {
    if (event.kind == Kind::kEndArray) {
      has_shape_ = true;
      return go(State::kTensor);
    }
    if (event.kind != Kind::kUnsigned || event.number > uint64_t{std::numeric_limits<int64_t>::max()})
      return unexpected(fmt::format("{}: shape[{}]", where(), current_.shape.size()), "an integer from 0 to 2^63-1", event);
    if (current_.shape.size() == kMaxTensorDims) return fail(fmt::format("{}: shape: more than {} dimensions", where(), kMaxTensorDims));
    current_.shape.push_back(static_cast<int64_t>(event.number));
    return true;
  }

  bool on_offsets(const JsonEvent& event) {
    if (event.kind == Kind::kEndArray) {
      if (*offset_count_ != 2) return fail(fmt::format("{}: data_offsets: expected 2 numbers, found {}", where(), *offset_count_));
      return go(State::kTensor);
    }
    if (event.kind != Kind::kUnsigned) return unexpected(where() + ": data_offsets", "a byte offset", event);
    if (*offset_count_ == 2) return fail(where() + ": data_offsets: expected 2 numbers, found more");
    (*offset_count_ == 0 ? begin_ : end_) = event.number;
    ++*offset_count_;
    return true;
  }

  bool end_tensor() {
    const char* missing = !has_dtype_ ? "dtype" : !has_shape_ ? "shape" : !offset_count_ ? "data_offsets" : nullptr;
    if (missing != nullptr) return fail(fmt::format("{}: {} is missing", where(), missing));
    auto bytes = tensor_bytes(current_.dtype, current_.shape);
    if (!bytes)
      return fail(fmt::format("{}: {} {} is larger than 2^63 bytes", where(), dtype_name(current_.dtype), shape_text(current_.shape)));
    if (begin_ > end_) return fail(fmt::format("{}: data_offsets [{}, {}] end before they begin", where(), begin_, end_));
    if (end_ - begin_ != *bytes)
      return fail(fmt::format("{}: {} {} takes {} bytes, but data_offsets [{}, {}] hold {}", where(), dtype_name(current_.dtype),
                              shape_text(current_.shape), *bytes, begin_, end_, end_ - begin_));
    current_.offset = begin_;
    current_.bytes = *bytes;
    tensors.push_back(std::move(current_));
    return go(State::kTop);
  }

  State state_ = State::kDocument;
  bool has_metadata_ = false;
  std::string metadata_key_;
  TensorInfo current_;
  bool has_dtype_ = false, has_shape_ = false;
  std::optional<int> offset_count_;  // empty until the tensor's data_offsets were seen
  uint64_t begin_ = 0, end_ = 0;
};

Result<void> check_names(const std::vector<TensorInfo>& tensors, std::string_view origin) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const TensorInfo& t : tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return input_error(fmt::format("{}: tensor {} appears twice in the header", origin, quote_text(*twice)));
  return {};
}

// For messages: a sum that stops at the largest number instead of wrapping.
uint64_t big_sum(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

// `tensors` sorted by offset must fill [0, data_bytes) exactly; offsets become relative to the start of the file.
Result<void> place_tensors(std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t file_bytes, std::string_view origin) {
  uint64_t at = 0, data_bytes = file_bytes - data_begin;
  const TensorInfo* previous = nullptr;
  for (TensorInfo& t : tensors) {
    if (t.offset < at)
      return input_error(fmt::format("{}: tensors {} and {} overlap: the first ends at data byte {}, the second begins at {}", origin,
                                     quote_text(previous->name), quote_text(t.name), at, t.offset));
    // The sum is the end that the header gave, so it does not wrap.
    if (t.offset + t.bytes > data_bytes)
      return input_error(fmt::format("{}: truncated: tensor {} needs bytes {}..{} of the file, it has {}; download it again", origin,
                                     quote_text(t.name), big_sum(data_begin, t.offset), big_sum(data_begin, t.offset + t.bytes),
                                     file_bytes));
    if (t.offset > at)
      return input_error(fmt::format("{}: tensor {} begins at data byte {}, expected {}: {} bytes belong to no tensor", origin,
                                     quote_text(t.name), t.offset, at, t.offset - at));
    at = t.offset + t.bytes;
    previous = &t;
  }
  if (at != data_bytes)
    return input_error(fmt::format("{}: the tensors end at byte {}, but the file has {}: {} bytes too many", origin, data_begin + at,
                                   file_bytes, data_bytes - at));
  for (TensorInfo& t : tensors) t.offset += data_begin;
  return {};
}

// Why the first bytes cannot be a safetensors length and header, or nothing.
std::optional<std::string> refuse_start(std::span<const std::byte> file_begin, uint64_t file_bytes, uint64_t* header_bytes) {
  if (file_begin.size() < kLengthBytes || file_bytes < kLengthBytes)
    return fmt::format("truncated: expected an 8-byte header length at its begin, found {} bytes; download it again", file_bytes);
  if (std::memcmp(file_begin.data(), "version ", kLengthBytes) == 0)
    return "a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull` or download the file again";
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; i++) length |= uint64_t{std::to_integer<uint8_t>(file_begin[i])} << (8 * i);
  if (length > kMaxSafetensorsHeaderBytes)
    return fmt::format("not a safetensors file: its header would have {} bytes, at most {} are allowed", length,
                       kMaxSafetensorsHeaderBytes);
  if (length > file_bytes - kLengthBytes)
    return fmt::format("truncated: the header needs bytes {}..{} of the file, it has {}; download it again", kLengthBytes,
                       kLengthBytes + length, file_bytes);
  *header_bytes = length;
  return std::nullopt;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> file_begin, uint64_t file_bytes, std::string_view origin) {
  uint64_t header_bytes = 0;
  if (auto reason = refuse_start(file_begin, file_bytes, &header_bytes)) return input_error(fmt::format("{}: {}", origin, *reason));
  if (header_bytes > file_begin.size() - kLengthBytes)
    return input_error(
        fmt::format("{}: the header has {} bytes, only {} were read", origin, header_bytes, file_begin.size() - kLengthBytes));
  std::string_view text(reinterpret_cast<const char*>(file_begin.data()) + kLengthBytes, header_bytes);
  if (text.empty() || text[0] != '{') {
    std::string found = text.empty() ? "nothing" : quote_text(text.substr(0, 1));
    return input_error(fmt::format("{}: not a safetensors file: expected its header to begin with '{{', found {}", origin, found));
  }
  HeaderListener listener;
  DG_TRY(stream_json(text, origin, listener));
  SafetensorsHeader header;
  header.tensors = std::move(listener.tensors);
  header.metadata = std::move(listener.metadata);
  header.data_begin = kLengthBytes + header_bytes;
  DG_TRY(check_names(header.tensors, origin));
  // Empty tensors share their offset with a neighbour: they come first, so that they are no overlap.
  auto before = [](const TensorInfo& a, const TensorInfo& b) { return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes; };
  if (!std::is_sorted(header.tensors.begin(), header.tensors.end(), before))
    std::stable_sort(header.tensors.begin(), header.tensors.end(), before);
  DG_TRY(place_tensors(header.tensors, header.data_begin, file_bytes, origin));
  return header;
}

Result<SafetensorsHeader> read_safetensors_header(const MappedFile& file) {
  std::vector<std::byte> begin(static_cast<size_t>(std::min<uint64_t>(file.size(), kLengthBytes)));
  DG_TRY(file.read_into(0, begin));
  uint64_t header_bytes = 0;
  if (auto reason = refuse_start(begin, file.size(), &header_bytes)) return input_error(fmt::format("{}: {}", file.path(), *reason));
  begin.resize(static_cast<size_t>(kLengthBytes + header_bytes));
  DG_TRY(file.read_into(0, begin));
  return parse_safetensors_header(begin, file.size(), file.path());
}

}  // namespace dg
