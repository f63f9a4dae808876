// Matrices packed column by column, as AWQ and GPTQ publish them: (in, out) words of 4- or 8-bit codes, zero points and scales
// per group of `in` beside them. A task reads its columns as a strip and turns them into rows, 128 at a time.
// Private to weight_source_awq.cpp and weight_source_gptq.cpp.
#pragma once
#include "model/weight_source_parts.h"

namespace dg::weight_source {

class ColumnPackedSource : public WeightSource {
 public:
  struct Parts {
    const TensorInfo *weight, *zeros, *scales;
    const TensorInfo* g_idx = nullptr;
  };
  struct Layout {
    int bits;
    int64_t group;        // elements of k per scale, a multiple of 32
    bool centred;         // every zero point must be 2^(bits - 1)
    int zero_offset;      // what is to be added to a stored zero point
    bool sorted;          // groups come from g_idx
    int64_t weight_rows;  // of words
  };
  ColumnPackedSource(const Lookup& l, const Parts& parts, const Layout& layout);

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const override;
  int64_t strip_rows() const override;
  bool permuted() const override { return layout_.sorted; }
  Result<std::vector<int32_t>> columns() const override;

 protected:
  int64_t rows_of_word() const override { return 32 / layout_.bits; }
  // Codes of `n` columns from `column` on of the k-th element: `words` holds weight_rows rows of a strip, `stride` words each.
  virtual void unpack_codes(const uint32_t* words, int64_t stride, int64_t k, int64_t column, int64_t n, uint8_t* to) const = 0;
  // Stored zero points of `n` columns from a row of packed words.
  virtual void unpack_zeros(const uint32_t* words, int64_t column, int64_t n, uint8_t* to) const = 0;

  const Layout layout_;

 private:
  struct Strip {
    int64_t weight_stride, zero_stride;  // words
    size_t zeros_at, scales_at, bytes;
  };
  Strip strip_layout(int64_t columns) const;
  int64_t group_count() const { return (in_ + layout_.group - 1) / layout_.group; }
  Result<void> load_strip(LoadScratch& scratch) const;
  Result<void> load_order(std::vector<int32_t>& groups, std::vector<int32_t>& order) const;
  Result<void> check_zeros(const LoadScratch& scratch) const;
  Result<void> read_block(const TensorInfo& info, int64_t rows, int64_t row_bytes, int64_t begin, int64_t count, std::byte* to) const;

  Parts parts_;
};

}  // namespace dg::weight_source
