// Matrices and vectors whose rows lie in the file as they are used: F32, F16, BF16, and the block formats of GGUF.
#include <fmt/core.h>

#include "io/shape_text.h"
#include "model/weight_source_parts.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"

namespace dg {
namespace {

const Format* plain_format(const TensorInfo& info) {
  if (info.format) return info.format;
  switch (info.dtype) {
    case Dtype::kF32: return &kF32;
    case Dtype::kF16: return &kF16;
    case Dtype::kBf16: return &kBf16;
    default: return nullptr;
  }
}

class PlainSource : public WeightSource {
 public:
  PlainSource(const TensorIndex& index, const TensorInfo& info, int64_t out, int64_t in)
      : WeightSource(index, *plain_format(info), out, in), row_bytes_(format_->row_bytes(in)) {
    tensors_ = {&info};
  }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte*, LoadScratch&) const override {
    return index_.read_rows(*tensors_[0], first, rows, {data, static_cast<size_t>(rows * row_bytes_)});
  }

 private:
  int64_t row_bytes_;
};

}  // namespace

namespace weight_source {

bool claims_plain(const Lookup& l) { return l.index.find(l.name) != nullptr; }

Made make_plain(const Lookup& l) {
  const TensorInfo& info = *l.index.find(l.name);
  DG_TRY(l.check_shape(info, {l.out, l.in}, " from config.json"));
  if (!plain_format(info))
    return input_error(fmt::format("{}: expected dtype F32, F16, BF16 or F8_E4M3, found {}", l.where(info), type_name(info)));
  return Made(std::make_unique<PlainSource>(l.index, info, l.out, l.in));
}

}  // namespace weight_source

Result<std::unique_ptr<WeightSource>> find_vector_source(const TensorIndex& index, const std::string& name, int64_t size) {
  const QuantConfig none;
  weight_source::Lookup l{index, none, name, name, 1, size};
  const TensorInfo* info = index.find(name);
  if (!info)
    return input_error(
        fmt::format("{}: tensor {} is missing: expected shape {}", index.file(0).path(), name, shape_text(std::vector<int64_t>{size})));
  DG_TRY(l.check_shape(*info, {size}, " from config.json"));
  if (!plain_format(*info))
    return input_error(fmt::format("{}: expected dtype F32, F16 or BF16, found {}", l.where(*info), type_name(*info)));
  return weight_source::Made(std::make_unique<PlainSource>(index, *info, 1, size));
}

}  // namespace dg
