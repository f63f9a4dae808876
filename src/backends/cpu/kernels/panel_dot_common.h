// What the families of panel_dot_*.h without tiles have in common.
#pragma once
#include <cstdint>

namespace dg::DG_ISA_NAMESPACE {
namespace {

// Set-up around the products of one call, with the tokens of a tile: none.
struct DotScope {
  DotScope(int64_t, bool) {}
};

template <int T>
struct RowCount {
  static constexpr int value = T;
};

// f(RowCount<T>, first row) for all rows: kMost at a time while they last, then 4, 2 and 1.
template <int kMost, class F>
inline void for_row_groups(int64_t rows, F f) {
  int64_t t = 0;
  for (; t + kMost <= rows; t += kMost) f(RowCount<kMost>{}, t);
  if constexpr (kMost > 8)
    for (; t + 8 <= rows; t += 8) f(RowCount<8>{}, t);
  if constexpr (kMost > 4)
    for (; t + 4 <= rows; t += 4) f(RowCount<4>{}, t);
  if constexpr (kMost > 2)
    for (; t + 2 <= rows; t += 2) f(RowCount<2>{}, t);
  for (; t < rows; t++) f(RowCount<1>{}, t);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
