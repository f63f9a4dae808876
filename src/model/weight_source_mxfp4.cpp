// MXFP4 as DeepSeek-V4 publishes its experts: X.weight I8 (out, in / 2), byte k holds column 2k in its low and 2k + 1 in its
// high nibble (E2M1), X.scale F8_E8M0 (out, in / 32). Delivered in the pack of GGUF's MXFP4, which holds the same bits with
// other neighbours. Source: spec/quant_formats.md section 3.
#include <fmt/core.h>

#include "model/weight_source_parts.h"
#include "quant/mxfp4_gguf.h"

namespace dg {
namespace {

class Mxfp4Source : public WeightSource {
 public:
  Mxfp4Source(const TensorIndex& index, const TensorInfo& weight, const TensorInfo& scale, int64_t out, int64_t in)
      : WeightSource(index, kMxfp4Gguf, out, in) {
    tensors_ = {&weight, &scale};
  }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte*, LoadScratch& scratch) const override {
    const TensorInfo &weight = *tensors_[0], &scale = *tensors_[1];
    const int64_t blocks = in_ / 32, count = rows * blocks;
    // Codes and exponents side by side, then one after the other into the packs.
    scratch.raw.resize(static_cast<size_t>(count * 17));
    std::span<std::byte> raw(scratch.raw), codes = raw.first(static_cast<size_t>(count * 16)),
                                           exponents = raw.last(static_cast<size_t>(count));
    DG_TRY(index_.file(weight.file).read_into(weight.offset + static_cast<uint64_t>(first * blocks * 16), codes));
    DG_TRY(index_.file(scale.file).read_into(scale.offset + static_cast<uint64_t>(first * blocks), exponents));
    const auto* from = reinterpret_cast<const uint8_t*>(codes.data());
    const auto* e = reinterpret_cast<const uint8_t*>(exponents.data());
    auto* to = reinterpret_cast<uint8_t*>(data);
    bool nan = false;
    for (int64_t i = 0; i < count; i++, from += 16, to += 17) {
      nan |= e[i] == 255;
      to[0] = e[i];
      for (int b = 0; b < 8; b++) {
        to[1 + 2 * b] = static_cast<uint8_t>((from[b] & 15) | (from[b + 8] & 15) << 4);
        to[2 + 2 * b] = static_cast<uint8_t>((from[b] >> 4) | (from[b + 8] & 0xf0));
      }
    }
    for (int64_t i = 0; nan && i < count; i++)
      if (e[i] == 255)
        return input_error(fmt::format("{}: expected finite scales, found nan at [{}, {}]", where(scale), first + i / blocks, i % blocks));
    return {};
  }
};

}  // namespace

namespace weight_source {

bool claims_mxfp4(const Lookup& l) {
  const TensorInfo* weight = l.index.find(l.name);
  return weight && !weight->format && (weight->dtype == Dtype::kI8 || weight->dtype == Dtype::kU8) && l.has(".scale");
}

Made make_mxfp4(const Lookup& l) {
  const TensorInfo &weight = *l.index.find(l.name), &scale = *l.find(".scale");
  if (l.in % 32 != 0)
    return input_error(
        fmt::format("{}: MXFP4 has blocks of 32 columns: expected a multiple of 32 columns, found {}", l.where(weight), l.in));
  DG_TRY(l.check_shape(weight, {l.out, l.in / 2}, " (two columns of a byte)"));
  DG_TRY(l.check_dtype(scale, {Dtype::kF8E8m0, Dtype::kU8}));
  DG_TRY(l.check_shape(scale, {l.out, l.in / 32}, " (one scale for 32 columns)"));
  return Made(std::make_unique<Mxfp4Source>(l.index, weight, scale, l.out, l.in));
}

}  // namespace weight_source
}  // namespace dg
