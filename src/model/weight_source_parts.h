// What the schemes of weight_source_*.cpp share; private to them.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>

#include "model/weight_source.h"

namespace dg::weight_source {

using Made = Result<std::unique_ptr<WeightSource>>;

// The tensors of one matrix, with checks that speak one language.
struct Lookup {
  const TensorIndex& index;
  const QuantConfig& config;
  std::string name;  // "model.layers.0.mlp.up_proj.weight"
  std::string base;  // without ".weight"
  int64_t out, in;

  const TensorInfo* find(std::string_view suffix) const { return index.find(base + std::string(suffix)); }
  bool has(std::string_view suffix) const { return find(suffix) != nullptr; }
  std::string where(const TensorInfo& info) const;
  // `info` is missing / of an unexpected shape / of an unexpected dtype: errors that say so; `why` follows the shape.
  Error missing(std::string_view suffix, const std::vector<int64_t>& shape, const TensorInfo& owner) const;
  Result<void> check_shape(const TensorInfo& info, const std::vector<int64_t>& expected, std::string_view why = "") const;
  Result<void> check_dtype(const TensorInfo& info, std::initializer_list<Dtype> expected) const;
};

// One scheme: whether its tensors exist, and its source.
struct Scheme {
  const char* name;
  bool (*claims)(const Lookup&);
  Made (*make)(const Lookup&);
};

bool claims_plain(const Lookup&);
Made make_plain(const Lookup&);
bool claims_fp8(const Lookup&);
Made make_fp8(const Lookup&);
bool claims_int8(const Lookup&);
Made make_int8(const Lookup&);
bool claims_mxfp4(const Lookup&);
Made make_mxfp4(const Lookup&);
bool claims_awq(const Lookup&);
Made make_awq(const Lookup&);
bool claims_gptq(const Lookup&);
Made make_gptq(const Lookup&);
bool claims_packed(const Lookup&);
Made make_packed(const Lookup&);

// Repacks one row of 4- or 8-bit codes into the packs of a Format: `code` of each k, per group of 32 a scale (f16 bits) and a
// zero point. The group formats of quant/: int4 (centred, scales beside), int4_asym, q8_0 (centred), int8_asym.
class RowPacker {
 public:
  // The format for codes of `bits`; centred: every zero point is 2^(bits - 1).
  static const Format& format(int bits, bool centred);
  RowPacker(const Format& format, int64_t in, std::byte* data, std::byte* scales);
  // Group `group` of 32 of row `row`: codes[0, n), n < 32 only at the end of a row.
  void pack(int64_t row, int64_t group, const uint8_t* codes, int64_t n, uint16_t scale, int zero) const;

 private:
  enum class Kind { kInt4, kInt4Asym, kQ80, kInt8Asym };
  Kind kind_;
  int64_t groups_;
  std::byte *data_, *scales_;
};

// Order of k that brings the columns of a group together (act order): stable by group. Errors: a group out of range, or one
// that does not fill whole packs of 32. `groups` is in the new order afterwards; both have in elements.
Result<void> sort_by_group(const TensorIndex& index, const TensorInfo& g_idx, int64_t group_count, std::vector<int32_t>& groups,
                           std::vector<int32_t>& order);

// `count` scales of `info` (F32, F16 or BF16, or E8M0) from element `first`, as floats; the error is the file's.
Result<void> read_scales(const TensorIndex& index, const TensorInfo& info, int64_t first, int64_t count, std::vector<std::byte>& raw,
                         float* to);
// The same from memory.
void decode_scales(Dtype dtype, const std::byte* from, int64_t count, float* to);
// Index of the first value that is not finite, or -1.
int64_t find_not_finite(const float* x, int64_t n);

}  // namespace dg::weight_source
