// What the attention kernels share: asynchronous copies, matrix fragments, swizzled tiles in shared memory.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments"), g = lane / 4, t = lane % 4:
//   A (16 x 16): a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8); each register holds columns c and c + 1.
//   B (16 x 8): b0 (k 2t, n g), b1 (k 2t + 8, n g); k and k + 1.   C (16 x 8): c0, c1 (g, 2t), (g, 2t + 1); c2, c3 row g + 8.
// Tiles are rows of 16-byte chunks (8 bf16); chunk c of row r stands at place c ^ (r % 8), so that the eight rows of a matrix that
// ldmatrix reads lie in different banks. Rows have a multiple of eight chunks.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace dg::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes from device to shared memory; zeros when !valid (the address is then not read).
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void store_chunk(uint32_t to, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until all but the latest `kPending` groups of this thread have arrived.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as bf16, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Address of chunk `chunk` of row `row` of a tile with rows of `row_bytes`.
__device__ __forceinline__ uint32_t tile_address(uint32_t tile, int row, int chunk, int row_bytes) {
  return tile + static_cast<uint32_t>(row * row_bytes + ((chunk ^ (row & 7)) << 4));
}

// The four 8 x 8 matrices of ldmatrix.x4 as this lane addresses them:
// of an A fragment: 16 rows from `row`, 16 columns from chunk `chunk` -> a0 .. a3;
// of V as B (transposed): 16 tokens from `row`, 16 columns from chunk -> b0, b1 of the first 8 columns, b0, b1 of the next 8.
__device__ __forceinline__ uint32_t fragment_a(uint32_t tile, int row, int chunk, int row_bytes, int lane) {
  return tile_address(tile, row + (lane & 15), chunk + (lane >> 4), row_bytes);
}
// of K as B: 16 tokens from `row`, 16 columns from chunk -> b0, b1 of the first 8 tokens, b0, b1 of the next 8.
__device__ __forceinline__ uint32_t fragment_k(uint32_t tile, int row, int chunk, int row_bytes, int lane) {
  return tile_address(tile, row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1), row_bytes);
}

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

constexpr float kLog2E = 1.44269504088896340736f;

// Running softmax of one row: its largest score so far (times scale and log2 e) and the sum of the weights relative to it.
struct RunningRow {
  float top = -INFINITY, sum = 0;
};
// What weights are relative to: the largest score, or 0 while nothing was seen.
__device__ __forceinline__ float softmax_base(float top) { return top == -INFINITY ? 0.0f : top; }

// One step of the softmax of rows g and g + 8 over 8 kWide positions from `at` on, whose scores (not yet scaled; scale has log2 e in it)
// become weights relative to the new largest score. A row sees positions below its limit. `shrink` is what sums so far are multiplied by.
template <int kWide>
__device__ __forceinline__ void softmax_step(float (&s)[kWide][4], RunningRow (&rows)[2], float (&shrink)[2], const int (&limit)[2], int at,
                                             bool mask, float scale, int t) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (mask) {
#pragma unroll
      for (int n = 0; n < kWide; n++)
#pragma unroll
        for (int c = 0; c < 2; c++)
          if (at + n * 8 + 2 * t + c >= limit[half]) s[n][2 * half + c] = -INFINITY;
    }
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kWide; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    RunningRow& row = rows[half];
    top = fmaxf(row.top, quad_max(top) * scale);
    const float base = softmax_base(top);
    shrink[half] = row.top == top ? 1.0f : exp2f(row.top - base);
    row.top = top;
    row.sum *= shrink[half];
#pragma unroll
    for (int n = 0; n < kWide; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float& score = s[n][2 * half + c];
        score = exp2f(__fmaf_rn(score, scale, -base));
        row.sum += score;
      }
  }
}

// Multiplies the columns of rows g and g + 8.
template <int kWide>
__device__ __forceinline__ void shrink_rows(float (&acc)[kWide][4], const float (&shrink)[2]) {
  if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kWide; n++) {
    acc[n][0] *= shrink[0], acc[n][1] *= shrink[0];
    acc[n][2] *= shrink[1], acc[n][3] *= shrink[1];
  }
}

// Weights of 8 kWide positions (two C fragments each) as A fragments.
template <int kWide>
__device__ __forceinline__ void pack_weights(uint32_t (&p)[kWide / 2][4], const float (&s)[kWide][4]) {
#pragma unroll
  for (int n = 0; n < kWide / 2; n++) {
    p[n][0] = pack_bf16(s[2 * n][0], s[2 * n][1]);
    p[n][1] = pack_bf16(s[2 * n][2], s[2 * n][3]);
    p[n][2] = pack_bf16(s[2 * n + 1][0], s[2 * n + 1][1]);
    p[n][3] = pack_bf16(s[2 * n + 1][2], s[2 * n + 1][3]);
  }
}

}  // namespace dg::cuda
