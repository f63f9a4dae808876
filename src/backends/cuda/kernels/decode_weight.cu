// Weights to plain rows. A thread makes 8 columns of one row; consecutive threads go along the row. Bound by memory for the prepared
// kinds (bytes read + 2 or 4 per element written); the published formats are read byte by byte through L1.
#include "backends/cuda/kernels/decode_weight.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "backends/cuda/kernels/decode_rows.h"
#include "backends/cuda/kernels/published_codes.cuh"

namespace dg::cuda {
namespace {

struct Args {
  PublishedMatrix published;  // also data of prepared bf16
  WeightView prepared;
  int64_t out;
  void* to;
  int64_t ld, columns, rows, first;
  const int32_t* ids;
};

template <bool kBf16>
__device__ __forceinline__ void store(const Args& a, int64_t row, int64_t k, const float (&v)[8]) {
  const int64_t at = row * a.ld + k;
  const bool whole = k + 8 <= a.columns;
  if constexpr (kBf16) {
    auto* to = static_cast<__nv_bfloat16*>(a.to) + at;
    if (whole && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      *reinterpret_cast<uint4*>(to) =
          make_uint4(pack_bf162(v[0], v[1]), pack_bf162(v[2], v[3]), pack_bf162(v[4], v[5]), pack_bf162(v[6], v[7]));
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (k + i < a.columns) to[i] = __float2bfloat16_rn(v[i]);
    }
  } else {
    auto* to = static_cast<float*>(a.to) + at;
    if (whole && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
      reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (k + i < a.columns) to[i] = v[i];
    }
  }
}

template <Published kFormat>
struct FromPublished {
  static __device__ void load(const Args& a, int64_t row, int64_t k, float (&v)[8]) {
    const PublishedMatrix& m = a.published;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i < m.in ? published_value<kFormat>(m, row, k + i) : 0.0f;
  }
};

// Rows of fp8 or int8 at addresses of 8 bytes: one load for 8 codes. The scale of a piece of 8 columns is one.
template <Published kFormat>
struct FromBytes {
  static __device__ void load(const Args& a, int64_t row, int64_t k, float (&v)[8]) {
    const PublishedMatrix& m = a.published;
    if (k >= m.in) return FromPublished<kFormat>::load(a, row, k, v);
    const uint2 codes = *reinterpret_cast<const uint2*>(m.data + row * m.in + k);
    constexpr int side = kFormat == Published::kFp8Block ? 128 : 32;
    float scale;
    if constexpr (kFormat == Published::kFp8Block || kFormat == Published::kFp8Block32)
      scale = byte_f32(m.scales + (row / side * ((m.in + side - 1) / side) + k / side) * 4);
    else scale = byte_f32(m.scales + row * 4);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t code = (i < 4 ? codes.x : codes.y) >> (8 * (i % 4)) & 0xffu;
      v[i] = scale * (kFormat == Published::kInt8 ? static_cast<float>(static_cast<int8_t>(code)) : e4m3_float(code));
    }
  }
};

// Prepared bf16, and published bf16 at addresses of 16 bytes; the padded columns are the row distance.
struct FromBf16 {
  static __device__ void load(const Args& a, int64_t row, int64_t k, float (&v)[8]) {
    const int64_t padded = static_cast<int64_t>(a.prepared.chunks) * 32;
    uint4 w = make_uint4(0, 0, 0, 0);
    if (k < padded) w = *reinterpret_cast<const uint4*>(a.prepared.data + (row * padded + k) * 2);
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = low_float(words[i]), v[2 * i + 1] = high_float(words[i]);
  }
};

template <WeightKind kKind>
struct FromBlocks {
  static __device__ void load(const Args& a, int64_t row, int64_t k, float (&v)[8]) {
    const WeightView& w = a.prepared;
    constexpr int columns = chunk_columns(kKind);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0;
    if (k >= w.in) return;
    const int64_t chunk = k / columns;
    const int j = static_cast<int>(k % columns) / 32, r = static_cast<int>(row % kTileRows),
              lane = r % 8 * 4 + static_cast<int>(k % 32) / 8;
    const uint8_t* block = w.data + row / kTileRows * w.tile_bytes + chunk * block_bytes(kKind);
    const uint8_t* codes = block + r / 8 * 512 + lane_place(kKind, lane) * 16;
    uint32_t p[4];
    if constexpr (chunk_groups(kKind) == 2) {
      const uint2 words = *reinterpret_cast<const uint2*>(codes + j * 8);
      unpack_codes<kKind>(words.x, words.y, p);
    } else {
      unpack_codes<kKind>(*reinterpret_cast<const uint32_t*>(codes + j * 4), 0, p);
    }
    float scale = 1, offset = 0, row_scale = 1;
    const auto* aux = reinterpret_cast<const float*>(w.aux);
    if constexpr (has_row_scale(kKind)) row_scale = aux[row];
    if constexpr (square_side(kKind) != 0) {
      scale = aux[row / square_side(kKind) * square_pitch(kKind, w.chunks) + k / square_side(kKind)];
    } else if constexpr (group_scale_bytes(kKind) != 0) {
      const auto* words = reinterpret_cast<const uint32_t*>(block + scale_offset(kKind, r, 0));
      scale = group_scale<kKind>(words, j);
      offset = group_offset<kKind>(words, j);
    }
    constexpr float excess = kKind == WeightKind::kCode4Offset ? 128 : 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float code = (i % 2 == 0 ? low_float(p[i / 2]) : high_float(p[i / 2])) - excess;
      v[i] = k + i < w.in ? (scale * code + offset) * row_scale : 0.0f;
    }
  }
};

template <class From, bool kBf16>
__global__ void __launch_bounds__(256) decode_kernel(const Args a) {
  const int64_t pieces = (a.columns + 7) / 8, total = a.rows * pieces;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t i = p / pieces, k = p % pieces * 8;
    const int64_t row = a.ids ? min(max(static_cast<int64_t>(a.ids[i]), int64_t{0}), a.out - 1) : a.first + i;
    float v[8];
    From::load(a, row, k, v);
    store<kBf16>(a, i, k, v);
  }
}

template <class From>
void launch(const Args& a, bool bf16, cudaStream_t stream) {
  const int64_t pieces = (a.columns + 7) / 8 * a.rows;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((pieces + 255) / 256, 132 * 32));
  if (blocks == 0) return;
  if (bf16) decode_kernel<From, true><<<blocks, 256, 0, stream>>>(a);
  else decode_kernel<From, false><<<blocks, 256, 0, stream>>>(a);
}

void launch_prepared(WeightKind kind, const Args& a, bool bf16, cudaStream_t stream) {
  switch (kind) {
    case WeightKind::kBf16: return launch<FromBf16>(a, bf16, stream);
#define DG_KIND(k) \
  case WeightKind::k: return launch<FromBlocks<WeightKind::k>>(a, bf16, stream);
      DG_KIND(kFp8Block128)
      DG_KIND(kFp8Block32)
      DG_KIND(kFp8Row)
      DG_KIND(kInt8Row)
      DG_KIND(kCode8)
      DG_KIND(kCode8Offset)
      DG_KIND(kCode4)
      DG_KIND(kCode4Offset)
      DG_KIND(kFp4)
      DG_KIND(kIq4)
#undef DG_KIND
    default: break;
  }
  std::fprintf(stderr, "dougong: no layout %d\n", static_cast<int>(kind));
  std::abort();
}

bool aligned(const void* p, int64_t to) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(to) == 0; }

void launch_published(Published format, Args a, bool bf16, cudaStream_t stream) {
  const int64_t in = a.published.in;
  const bool words = in % 8 == 0 && aligned(a.published.data, 8);
  switch (format) {
    case Published::kBf16:
      if (in % 32 != 0 || !aligned(a.published.data, 16)) return launch<FromPublished<Published::kBf16>>(a, bf16, stream);
      a.prepared = {
          .data = a.published.data, .kind = WeightKind::kBf16, .in = static_cast<int32_t>(in), .chunks = static_cast<int32_t>(in / 32)};
      return launch<FromBf16>(a, bf16, stream);
#define DG_BYTES(f)                                                     \
  case Published::f:                                                    \
    if (words) return launch<FromBytes<Published::f>>(a, bf16, stream); \
    return launch<FromPublished<Published::f>>(a, bf16, stream);
#define DG_FORMAT(f) \
  case Published::f: return launch<FromPublished<Published::f>>(a, bf16, stream);
      DG_BYTES(kFp8Block)
      DG_BYTES(kFp8Block32)
      DG_BYTES(kFp8Channel)
      DG_BYTES(kInt8)
      DG_FORMAT(kF32)
      DG_FORMAT(kF16)
      DG_FORMAT(kQ80)
      DG_FORMAT(kInt4)
      DG_FORMAT(kInt4Asym)
      DG_FORMAT(kInt8Asym)
      DG_FORMAT(kQ40)
      DG_FORMAT(kQ41)
      DG_FORMAT(kQ50)
      DG_FORMAT(kQ51)
      DG_FORMAT(kQ2K)
      DG_FORMAT(kQ3K)
      DG_FORMAT(kQ4K)
      DG_FORMAT(kQ5K)
      DG_FORMAT(kQ6K)
      DG_FORMAT(kIq4Nl)
      DG_FORMAT(kIq4Xs)
      DG_FORMAT(kMxfp4)
#undef DG_BYTES
#undef DG_FORMAT
    case Published::kCount: break;
  }
  std::fprintf(stderr, "dougong: no such weight format (%d) on the GPU\n", static_cast<int>(format));
  std::abort();
}

}  // namespace

void launch_decode_rows(const Weight& w, const DecodeRows& d, cudaStream_t stream) {
  Args a{};
  a.published = {reinterpret_cast<const uint8_t*>(w.data), reinterpret_cast<const uint8_t*>(w.scales), w.in};
  a.out = w.out;
  a.to = d.to, a.ld = d.ld, a.columns = d.columns, a.rows = d.rows, a.first = d.first, a.ids = d.ids;
  const Published format = published(*w.format);
  if (!w.prepared) return launch_published(format, a, d.bf16, stream);
  const WeightGeometry g = weight_geometry(weight_kind(format), w.out, w.in);
  a.prepared = {.data = a.published.data,
                .aux = a.published.data + g.aux_offset,
                .kind = g.kind,
                .out = static_cast<int32_t>(w.out),
                .in = static_cast<int32_t>(w.in),
                .chunks = static_cast<int32_t>(g.chunks),
                .tile_bytes = g.tile_bytes};
  launch_prepared(g.kind, a, d.bf16, stream);
}

void launch_decode_weight(const Weight& w, void* out, bool bf16, int64_t first_row, int64_t rows, cudaStream_t stream) {
  launch_decode_rows(w, {.to = out, .bf16 = bf16, .ld = w.in, .columns = w.in, .rows = rows, .first = first_row}, stream);
}

}  // namespace dg::cuda
