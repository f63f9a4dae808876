// The CPU kernels, compiled once per instruction set with DG_ISA_NAMESPACE (isa_avx2), DG_ISA_TABLE (kernels_avx2) and
// DG_ISA_NAME ("avx2"); isa.cmake lists them. Nothing here may have external linkage except the table.
#include "backends/cpu/kernels/kernels.h"

#include "backends/cpu/kernels/decode.h"
#if defined(__AMX_TILE__)
#include "backends/cpu/kernels/attention_amx.h"
#else
#include "backends/cpu/kernels/attention_portable.h"
#endif
#include "backends/cpu/kernels/matmul.h"
#include "backends/cpu/kernels/panel.h"
#include "backends/cpu/kernels/peaks.h"
#include "backends/cpu/kernels/rows.h"

namespace dg {
namespace DG_ISA_NAMESPACE {
namespace {

void panel_pack_weight(const Weight& rows, int64_t first, int64_t out, std::byte* to) {
  DecodeFn decode = rows.format->decode;
  for (const Decoder& d : kDecoders)
    if (__builtin_strcmp(d.format, rows.format->name) == 0) decode = d.decode;
  panel_pack_rows({rows, decode}, first, out, to);
}

#if defined(__AMX_TILE__)
void attention(const AttentionTask& a) {
  if (tile_element(a.k.element) && tile_element(a.v.element)) tile_attention(a);
  else portable_attention(a);
}
void mla_prefill(const MlaPrefillTask& a) {
  if (tile_element(a.cache.element)) tile_mla_prefill(a);
  else portable_mla_prefill(a);
}
void mla_absorb(const MlaProjectTask& a) {
  if (tile_element(a.element)) project_portions(a, tile_mla_absorb_some);
  else portable_mla_absorb(a);
}
void mla_output(const MlaProjectTask& a) {
  if (tile_element(a.element)) project_portions(a, tile_mla_output_some);
  else portable_mla_output(a);
}
#else
void attention(const AttentionTask& a) { portable_attention(a); }
void mla_prefill(const MlaPrefillTask& a) { portable_mla_prefill(a); }
void mla_absorb(const MlaProjectTask& a) { portable_mla_absorb(a); }
void mla_output(const MlaProjectTask& a) { portable_mla_output(a); }
#endif

}  // namespace
}  // namespace DG_ISA_NAMESPACE

extern const KernelTable DG_ISA_TABLE;
const KernelTable DG_ISA_TABLE = {
    .isa = DG_ISA_NAME,
    .decoders = DG_ISA_NAMESPACE::kDecoders,
    .decoder_count = sizeof(DG_ISA_NAMESPACE::kDecoders) / sizeof(Decoder),
    .matmul = DG_ISA_NAMESPACE::matmul,
    .panel_pack = DG_ISA_NAMESPACE::panel_pack_weight,
    .activation_bytes = DG_ISA_NAMESPACE::activation_bytes,
    .pack_row = DG_ISA_NAMESPACE::pack_row,
    .panel_product = DG_ISA_NAMESPACE::panel_product,
    .attention = DG_ISA_NAMESPACE::attention,
    .attention_merge = DG_ISA_NAMESPACE::attention_merge,
    .mla_prefill = DG_ISA_NAMESPACE::mla_prefill,
    .mla_absorb = DG_ISA_NAMESPACE::mla_absorb,
    .mla_output = DG_ISA_NAMESPACE::mla_output,
    .cache_write = DG_ISA_NAMESPACE::cache_write,
    .rms_norm = DG_ISA_NAMESPACE::rms_norm,
    .add = DG_ISA_NAMESPACE::add,
    .add_scaled = DG_ISA_NAMESPACE::add_scaled,
    .act_mul = DG_ISA_NAMESPACE::act_mul,
    .rope = DG_ISA_NAMESPACE::rope,
    .convert = DG_ISA_NAMESPACE::convert,
    .peak = DG_ISA_NAMESPACE::peak,
};

}  // namespace dg
