// Layout of the generated tables in unicode_data.cpp (tools/unicode/generate.mjs); read them through unicode.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dg::unicode::data {

struct CaseRun {  // code points first, first + stride, ..., last map to themselves + delta
  uint32_t first, last;
  uint8_t stride;
  int32_t delta;
};

struct Composition {  // sorted by (first, second)
  uint32_t first, second, composed;
};

// Runs: first code point << 8 | value, sorted, covering all code points.
extern const uint32_t kCategoryRuns[];  // value: Category
extern const size_t kCategoryRunsSize;
extern const uint32_t kScriptRuns[];  // value: 0 unknown, else 1 + index into kScriptNames
extern const size_t kScriptRunsSize;
extern const char* const kScriptNames[];
extern const size_t kScriptNamesSize;
extern const uint32_t kCombiningRuns[];  // value: 0 starter, else the rank of the canonical combining class
extern const size_t kCombiningRunsSize;
// Pairs first, last (inclusive).
extern const uint32_t kWhiteSpace[];
extern const size_t kWhiteSpaceSize;
extern const uint32_t kOtherWord[];  // \w beyond the categories L, M, Nd, Pc
extern const size_t kOtherWordSize;
extern const CaseRun kFoldRuns[];  // simple case folding (statuses C and S)
extern const size_t kFoldRunsSize;
extern const CaseRun kLowerRuns[];  // simple lower case
extern const size_t kLowerRunsSize;
// Full decompositions: code point | compatibility << 21 | UTF-16 length << 22, sorted; a code point whose canonical and
// compatibility decompositions differ has both. The texts follow each other in kDecompositionUnits.
extern const uint32_t kDecompositions[];
extern const size_t kDecompositionsSize;
extern const uint16_t kDecompositionUnits[];
extern const size_t kDecompositionUnitsSize;
extern const Composition kCompositions[];
extern const size_t kCompositionsSize;

}  // namespace dg::unicode::data
