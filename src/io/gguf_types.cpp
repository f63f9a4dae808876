// The element types of ggml.h that this program reads, and the names of those it does not.
#include <fmt/core.h>

#include "io/gguf.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4_gguf.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

constexpr GgmlType kTypes[] = {
    {0, "F32", Dtype::kF32, &kF32, false},        {1, "F16", Dtype::kF16, &kF16, false},     {2, "Q4_0", Dtype::kU8, &kQ40, true},
    {3, "Q4_1", Dtype::kU8, &kQ41, true},         {6, "Q5_0", Dtype::kU8, &kQ50, true},      {7, "Q5_1", Dtype::kU8, &kQ51, true},
    {8, "Q8_0", Dtype::kU8, &kQ80, true},         {10, "Q2_K", Dtype::kU8, &kQ2K, true},     {11, "Q3_K", Dtype::kU8, &kQ3K, true},
    {12, "Q4_K", Dtype::kU8, &kQ4K, true},        {13, "Q5_K", Dtype::kU8, &kQ5K, true},     {14, "Q6_K", Dtype::kU8, &kQ6K, true},
    {20, "IQ4_NL", Dtype::kU8, &kIq4Nl, true},    {23, "IQ4_XS", Dtype::kU8, &kIq4Xs, true}, {30, "BF16", Dtype::kBf16, &kBf16, false},
    {39, "MXFP4", Dtype::kU8, &kMxfp4Gguf, true},
};

struct OtherType {
  uint32_t id;
  const char* name;
};
constexpr OtherType kOthers[] = {
    {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {21, "IQ3_S"},
    {22, "IQ2_S"}, {24, "I8"},    {25, "I16"},     {26, "I32"},    {27, "I64"},     {28, "F64"},   {29, "IQ1_M"},
    {34, "TQ1_0"}, {35, "TQ2_0"}, {40, "NVFP4"},   {41, "Q1_0"},   {42, "Q2_0"},
};

}  // namespace

const GgmlType* find_ggml_type(uint32_t id) {
  for (const GgmlType& type : kTypes)
    if (type.id == id) return &type;
  return nullptr;
}

const GgmlType* ggml_type_of(const Format& format) {
  for (const GgmlType& type : kTypes)
    if (type.format == &format) return &type;
  return nullptr;
}

std::string ggml_type_text(uint32_t id) {
  if (const GgmlType* type = find_ggml_type(id)) return fmt::format("{} ({})", type->name, id);
  for (const OtherType& type : kOthers)
    if (type.id == id) return fmt::format("{} ({})", type.name, id);
  return fmt::format("{}, which ggml does not define,", id);
}

}  // namespace dg
