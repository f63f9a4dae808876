#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "base/json.h"
#include "io/error_text.h"
#include "io/partial_file.h"
#include "io/safetensors.h"
#include "io/shape_text.h"

namespace dg {
namespace {

Result<std::string> header_text(const std::string& path, std::span<const TensorToWrite> tensors, const std::vector<size_t>& order,
                                const std::map<std::string, std::string>& metadata) {
  try {
    // Written entry by entry: a tree of 90,000 ordered entries would be searched for each insertion.
    std::string text = "{";
    if (!metadata.empty()) text += "\"__metadata__\":" + SortedJson(metadata).dump();
    uint64_t at = 0;
    for (size_t i : order) {
      const TensorToWrite& t = tensors[i];
      if (text.size() > 1) text += ',';
      text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}", SortedJson(t.name).dump(), dtype_name(t.dtype),
                          shape_text(t.shape), at, at + t.data.size());
      at += t.data.size();
    }
    text += '}';
    text.append((8 - text.size() % 8) % 8, ' ');
    return text;
  } catch (const std::exception& error) {  // text that is not UTF-8
    return input_error(fmt::format("{}: a tensor name or metadata entry cannot be written as JSON: {}", path, quote_text(error.what())));
  }
}

Result<void> check_tensors(const std::string& path, std::span<const TensorToWrite> tensors) {
  std::vector<std::string_view> names;
  for (const TensorToWrite& t : tensors) {
    auto bytes = tensor_bytes(t.dtype, t.shape);
    if (!bytes || *bytes != t.data.size())
      return input_error(fmt::format("{}: tensor {}: {} {} takes {} bytes, the data has {}", path, quote_text(t.name), dtype_name(t.dtype),
                                     shape_text(t.shape), bytes ? std::to_string(*bytes) : "more than 2^63", t.data.size()));
    bool control = std::any_of(t.name.begin(), t.name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; });
    if (t.name == "__metadata__" || t.name.size() > kMaxTensorNameBytes || control || t.shape.size() > kMaxTensorDims)
      return input_error(
          fmt::format("{}: tensor {}: expected a name of at most {} bytes without control characters, other than "
                      "__metadata__, and at most {} dimensions",
                      path, quote_text(t.name), kMaxTensorNameBytes, kMaxTensorDims));
    names.push_back(t.name);
  }
  std::sort(names.begin(), names.end());
  auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return input_error(fmt::format("{}: tensor {} is given twice", path, quote_text(*twice)));
  return {};
}

}  // namespace

Result<void> write_safetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                               const std::map<std::string, std::string>& metadata) {
  DG_TRY(check_tensors(path, tensors));
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return dtype_bytes(tensors[a].dtype) > dtype_bytes(tensors[b].dtype); });
  DG_ASSIGN(std::string text, header_text(path, tensors, order, metadata));
  if (text.size() > kMaxSafetensorsHeaderBytes)
    return input_error(fmt::format("{}: the header would have {} bytes, at most {} are allowed; write several files", path, text.size(),
                                   kMaxSafetensorsHeaderBytes));
  std::byte length[8];
  for (size_t i = 0; i < 8; i++) length[i] = static_cast<std::byte>(uint64_t{text.size()} >> (8 * i));

  DG_ASSIGN(PartialFile file, PartialFile::create(path));
  DG_TRY(file.write(length));
  DG_TRY(file.write(std::as_bytes(std::span(text))));
  for (size_t i : order) DG_TRY(file.write(tensors[i].data));
  return file.commit();
}

}  // namespace dg
