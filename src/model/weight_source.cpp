#include "model/weight_source.h"

#include <fmt/core.h>

#include <cmath>
#include <cstring>

#include "io/shape_text.h"
#include "model/weight_source_parts.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/fp8_block.h"
#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/q8_0.h"

namespace dg {

using weight_source::Lookup;

namespace {

// The first scheme whose tensors exist makes the source; the plain one comes last and says what is missing.
constexpr weight_source::Scheme kSchemes[] = {
    {"fp8", weight_source::claims_fp8, weight_source::make_fp8},       {"mxfp4", weight_source::claims_mxfp4, weight_source::make_mxfp4},
    {"int8", weight_source::claims_int8, weight_source::make_int8},    {"packed", weight_source::claims_packed, weight_source::make_packed},
    {"awq", weight_source::claims_awq, weight_source::make_awq},       {"gptq", weight_source::claims_gptq, weight_source::make_gptq},
    {"plain", weight_source::claims_plain, weight_source::make_plain},
};

Lookup lookup_of(const TensorIndex& index, const QuantConfig& config, const std::string& name, int64_t out, int64_t in) {
  constexpr std::string_view kSuffix = ".weight";
  std::string base = name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
  return {index, config, name, std::move(base), out, in};
}

}  // namespace

std::string WeightSource::where(const TensorInfo& info) const {
  return fmt::format("{}: tensor {}", index_.file(info.file).path(), info.name);
}

Result<std::unique_ptr<WeightSource>> find_weight_source(const TensorIndex& index, const QuantConfig& config, const std::string& name,
                                                         int64_t out, int64_t in) {
  Lookup lookup = lookup_of(index, config, name, out, in);
  for (const weight_source::Scheme& scheme : kSchemes)
    if (scheme.claims(lookup)) return scheme.make(lookup);
  return input_error(
      fmt::format("{}: tensor {} is missing: expected shape {}", index.file(0).path(), name, shape_text(std::vector<int64_t>{out, in})));
}

const Format& assumed_format(const QuantConfig& config) {
  switch (config.method) {
    case QuantConfig::Method::kFp8: return kFp8BlockFormat;
    case QuantConfig::Method::kAwq: return kInt4Asym;
    case QuantConfig::Method::kGptq:
      return config.bits == 4 ? (config.symmetric ? kInt4GroupFormat : kInt4Asym) : (config.symmetric ? kQ80 : kInt8Asym);
    // Several formats share this name and the tensors decide between them; the commonest.
    case QuantConfig::Method::kCompressedTensors: return config.bits == 4 ? kInt4GroupFormat : config.bits == 8 ? kInt8Channel : kBf16;
    case QuantConfig::Method::kNone: break;
  }
  return kBf16;
}

bool has_weight_source(const TensorIndex& index, const std::string& name) {
  const QuantConfig any;
  Lookup lookup = lookup_of(index, any, name, 0, 0);
  for (const weight_source::Scheme& scheme : kSchemes)
    if (scheme.claims(lookup)) return true;
  return false;
}

namespace weight_source {

std::string Lookup::where(const TensorInfo& info) const { return fmt::format("{}: tensor {}", index.file(info.file).path(), info.name); }

Error Lookup::missing(std::string_view suffix, const std::vector<int64_t>& shape, const TensorInfo& owner) const {
  return input_error(fmt::format("{}: dtype {} needs tensor {}{} of shape {}, which is missing", where(owner), type_name(owner), base,
                                 suffix, shape_text(shape)));
}

Result<void> Lookup::check_shape(const TensorInfo& info, const std::vector<int64_t>& expected, std::string_view why) const {
  if (info.shape == expected) return {};
  return input_error(fmt::format("{}: expected shape {}{}, found {}", where(info), shape_text(expected), why, shape_text(info.shape)));
}

Result<void> Lookup::check_dtype(const TensorInfo& info, std::initializer_list<Dtype> expected) const {
  std::string names;
  size_t i = 0;
  for (Dtype d : expected) {
    if (!info.format && info.dtype == d) return {};
    names += (i == 0 ? "" : i + 1 == expected.size() ? " or " : ", ") + std::string(dtype_name(d));
    i++;
  }
  return input_error(fmt::format("{}: expected dtype {}, found {}", where(info), names, type_name(info)));
}

int64_t find_not_finite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!std::isfinite(x[i])) return i;
  return -1;
}

void decode_scales(Dtype dtype, const std::byte* from, int64_t count, float* to) {
  const size_t size = dtype_bytes(dtype);
  for (int64_t i = 0; i < count; i++) {
    uint16_t half = 0;
    const std::byte* at = from + static_cast<size_t>(i) * size;
    switch (dtype) {
      case Dtype::kF32: std::memcpy(to + i, at, 4); break;
      case Dtype::kF16: std::memcpy(&half, at, 2), to[i] = f16_to_float(half); break;
      case Dtype::kBf16: std::memcpy(&half, at, 2), to[i] = bf16_to_float(half); break;
      case Dtype::kF8E8m0: {
        // 2^(e - 127); e 0 is 2^-127, a subnormal float; 255 is NaN.
        auto e = static_cast<uint32_t>(*at);
        to[i] = bits_to_float(e == 255 ? 0x7fc00000u : e == 0 ? 0x00400000u : e << 23);
        break;
      }
      default: CHECK(false) << "scales of dtype " << dtype_name(dtype);
    }
  }
}

Result<void> read_scales(const TensorIndex& index, const TensorInfo& info, int64_t first, int64_t count, std::vector<std::byte>& raw,
                         float* to) {
  const size_t size = dtype_bytes(info.dtype);
  raw.resize(static_cast<size_t>(count) * size);
  DG_TRY(index.file(info.file).read_into(info.offset + static_cast<uint64_t>(first) * size, raw));
  decode_scales(info.dtype, raw.data(), count, to);
  return {};
}

}  // namespace weight_source

}  // namespace dg
