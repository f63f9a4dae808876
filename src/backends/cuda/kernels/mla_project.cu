// The two products around latent attention, for every head h with its own (nope + v_dim, kv_lora) rows [Wk; Wv] of kv_b:
//   query:  q_latent = Wk^T q_nope, and q_pe beside it;   output: out = Wv out_latent.
// Bytes: kv_b once (128 heads: 2 x 16.8 MB, 3.5 us each on an H200; 16 heads: 2.1 MB, bound by latency), in blocks of 64 latent columns
// (query) or 32 value columns (output), whole in shared memory before the first multiplication. Flops: 2 x rows x kv_b; from about 200
// rows on the products are bound by mma.sync and by reading kv_b from L2 for every 64 rows.
//
// The general forms take any size, in f32.
#include <algorithm>

#include "backends/cuda/kernels/attention_kernels.h"
#include "backends/cuda/kernels/attention_mma.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 128, kQueryColumns = 64, kOutputColumns = 32;
constexpr int kLatentRow = kLatent + kLatentRope;

// kAcross: warps side by side on the rows (4: blocks of 64 rows); the other 4 / kAcross share the columns.
// Block x: latent columns, and behind the last of them the rope part; y: head; z: rows.
template <int kAcross>
__global__ void __launch_bounds__(kThreads) query_kernel(const ProjectArgs a) {
  constexpr int kRows = 16 * kAcross, kSide = 4 / kAcross, kTiles = kQueryColumns / 8 / kSide;  // n tiles of a warp
  extern __shared__ __align__(128) unsigned char shared[];
  const int head = blockIdx.y, first_row = blockIdx.z * kRows, column = blockIdx.x * kQueryColumns;
  const int rows = min(kRows, a.rows - first_row);
  auto* const out = static_cast<__nv_bfloat16*>(a.q_latent);
  start_next();
  if (column >= kLatent || !a.settled) wait_for_previous();
  if (column >= kLatent) {
    for (int i = threadIdx.x; i < rows * kLatentRope; i += kThreads) {
      const int row = first_row + i / kLatentRope, c = i % kLatentRope;
      out[(static_cast<int64_t>(row) * a.heads + head) * kLatentRow + kLatent + c] =
          __float2bfloat16_rn(a.q[row * a.q_row + head * a.q_head + a.nope + c]);
    }
    return;
  }
  const int chunks = a.nope / 8;  // of a row of q
  const uint32_t w_tile = shared_address(shared), q_tile = w_tile + static_cast<uint32_t>(a.nope * kQueryColumns * 2);

  // Wk: nope rows of 64 columns. Its rows are the k side.
  const auto* weight = static_cast<const __nv_bfloat16*>(a.weight) + static_cast<int64_t>(head) * (a.nope + a.v_dim) * kLatent + column;
  for (int i = threadIdx.x; i < a.nope * (kQueryColumns / 8); i += kThreads) {
    const int k = i / (kQueryColumns / 8), chunk = i % (kQueryColumns / 8);
    copy_async(tile_address(w_tile, k, chunk, kQueryColumns * 2), weight + k * kLatent + chunk * 8, true);
  }
  copy_async_commit();
  wait_for_previous();
  for (int i = threadIdx.x; i < kRows * chunks; i += kThreads) {
    const int row = i / chunks, chunk = i % chunks;
    uint4 v = {0, 0, 0, 0};
    if (row < rows) {
      const float* from = a.q + (first_row + row) * a.q_row + head * a.q_head + chunk * 8;
      v = {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7])};
    }
    store_chunk(tile_address(q_tile, row, chunk, a.nope * 2), v);
  }
  copy_async_wait<0>();
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int m = warp % kAcross * 16, side = warp / kAcross;  // first row, part of the columns
  float acc[kTiles][4] = {};
  for (int k = 0; k < a.nope; k += 16) {
    uint32_t q[4];
    load_matrices(q, fragment_a(q_tile, m, k / 8, a.nope * 2, lane));
#pragma unroll
    for (int n = 0; n < kTiles / 2; n++) {
      uint32_t b[4];
      load_matrices_transposed(b, fragment_a(w_tile, k, side * kTiles + 2 * n, kQueryColumns * 2, lane));
      mma(acc[2 * n], q, b[0], b[1]);
      mma(acc[2 * n + 1], q, b[2], b[3]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = m + g + 8 * half;
    if (row >= rows) continue;
    __nv_bfloat16* to = out + (static_cast<int64_t>(first_row + row) * a.heads + head) * kLatentRow + column + side * kTiles * 8 + 2 * t;
#pragma unroll
    for (int n = 0; n < kTiles; n++) *reinterpret_cast<uint32_t*>(to + n * 8) = pack_bf16(acc[n][2 * half], acc[n][2 * half + 1]);
  }
}

// Block x: value columns; y: head; z: rows. With kAcross = 1 each warp has 8 columns.
template <int kAcross>
__global__ void __launch_bounds__(kThreads) output_kernel(const ProjectArgs a) {
  constexpr int kRows = 16 * kAcross, kSide = 4 / kAcross, kTiles = kOutputColumns / 8 / kSide, kChunks = kLatent / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  const int head = blockIdx.y, first_row = blockIdx.z * kRows, column = blockIdx.x * kOutputColumns;
  const int rows = min(kRows, a.rows - first_row);
  const uint32_t w_tile = shared_address(shared), x_tile = w_tile + kOutputColumns * kLatent * 2;

  start_next();
  if (!a.settled) wait_for_previous();
  // Wv: 32 rows of kv_lora columns; its rows are the n side.
  const auto* weight =
      static_cast<const __nv_bfloat16*>(a.weight) + (static_cast<int64_t>(head) * (a.nope + a.v_dim) + a.nope + column) * kLatent;
#pragma unroll 8
  for (int i = threadIdx.x; i < kOutputColumns * kChunks; i += kThreads)
    copy_async(tile_address(w_tile, i / kChunks, i % kChunks, kLatent * 2), weight + static_cast<int64_t>(i) * 8, true);
  wait_for_previous();
  const auto* x = static_cast<const __nv_bfloat16*>(a.out_latent);
#pragma unroll 8
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t from = static_cast<int64_t>(first_row + min(row, rows - 1)) * a.heads + head;
    copy_async(tile_address(x_tile, row, chunk, kLatent * 2), x + from * kLatent + chunk * 8, row < rows);
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int m = warp % kAcross * 16, side = warp / kAcross;
  float acc[kTiles][4] = {};
#pragma unroll 4
  for (int k = 0; k < kLatent; k += 32) {
    uint32_t q[2][4];
    load_matrices(q[0], fragment_a(x_tile, m, k / 8, kLatent * 2, lane));
    load_matrices(q[1], fragment_a(x_tile, m, k / 8 + 2, kLatent * 2, lane));
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      uint32_t b[4];  // 8 columns, 32 of k
      load_matrices(b, tile_address(w_tile, (side * kTiles + n) * 8 + (lane & 7), k / 8 + (lane >> 3), kLatent * 2));
      mma(acc[n], q[0], b[0], b[1]);
      mma(acc[n], q[1], b[2], b[3]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = m + g + 8 * half;
    if (row >= rows) continue;
    float* to = a.out + (first_row + row) * a.out_row + head * a.out_head + column + side * kTiles * 8 + 2 * t;
#pragma unroll
    for (int n = 0; n < kTiles; n++) to[n * 8] = acc[n][2 * half], to[n * 8 + 1] = acc[n][2 * half + 1];
  }
}

// A block for each row and head, a thread for each latent column.
__global__ void query_general_kernel(const ProjectArgs a) {
  const int row = blockIdx.x, head = blockIdx.y;
  const float* const q = a.q + row * a.q_row + head * a.q_head;
  const float* const weight = static_cast<const float*>(a.weight) + static_cast<int64_t>(head) * (a.nope + a.v_dim) * a.kv_lora;
  float* const out = static_cast<float*>(a.q_latent) + (static_cast<int64_t>(row) * a.heads + head) * (a.kv_lora + a.rope);
  start_next();
  wait_for_previous();
  for (int i = threadIdx.x; i < a.kv_lora; i += blockDim.x) {
    float sum = 0;
#pragma unroll 4
    for (int k = 0; k < a.nope; k++) sum += q[k] * weight[static_cast<int64_t>(k) * a.kv_lora + i];
    out[i] = sum;
  }
  for (int i = threadIdx.x; i < a.rope; i += blockDim.x) out[a.kv_lora + i] = q[a.nope + i];
}

// A block for each row and head, a warp for each value column.
__global__ void output_general_kernel(const ProjectArgs a) {
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
  const float* const x = static_cast<const float*>(a.out_latent) + (static_cast<int64_t>(row) * a.heads + head) * a.kv_lora;
  const float* const weight = static_cast<const float*>(a.weight) + (static_cast<int64_t>(head) * (a.nope + a.v_dim) + a.nope) * a.kv_lora;
  float* const out = a.out + row * a.out_row + head * a.out_head;
  start_next();
  wait_for_previous();
  for (int v = threadIdx.x / 32; v < a.v_dim; v += blockDim.x / 32) {
    float sum = 0;
    for (int i = lane; i < a.kv_lora; i += 32) sum += x[i] * weight[static_cast<int64_t>(v) * a.kv_lora + i];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) out[v] = sum;
  }
}

dim3 grid_of(int x, int heads, int rows, int rows_each) {
  return {static_cast<unsigned>(x), static_cast<unsigned>(heads), static_cast<unsigned>((rows + rows_each - 1) / rows_each)};
}

template <int kAcross>
void launch_query(const ProjectArgs& a, cudaStream_t stream) {
  const int bytes = a.nope * (kQueryColumns + 16 * kAcross) * 2;
  allow_shared_memory<query_kernel<kAcross>>(256 * (kQueryColumns + 16 * kAcross) * 2);
  launch_dependent(query_kernel<kAcross>, grid_of(kLatent / kQueryColumns + 1, a.heads, a.rows, 16 * kAcross), kThreads,
                   static_cast<size_t>(bytes), stream, a);
}

template <int kAcross>
void launch_output(const ProjectArgs& a, cudaStream_t stream) {
  constexpr int kBytes = kLatent * (kOutputColumns + 16 * kAcross) * 2;
  allow_shared_memory<output_kernel<kAcross>>(kBytes);
  launch_dependent(output_kernel<kAcross>, grid_of(a.v_dim / kOutputColumns, a.heads, a.rows, 16 * kAcross), kThreads, kBytes, stream, a);
}

dim3 one_by_one(const ProjectArgs& a) { return {static_cast<unsigned>(a.rows), static_cast<unsigned>(a.heads), 1}; }

}  // namespace

void launch_latent_query(const ProjectArgs& a, cudaStream_t stream) {
  a.rows <= 16 ? launch_query<1>(a, stream) : launch_query<4>(a, stream);
}
void launch_latent_output(const ProjectArgs& a, cudaStream_t stream) {
  a.rows <= 16 ? launch_output<1>(a, stream) : launch_output<4>(a, stream);
}
void launch_latent_query_general(const ProjectArgs& a, cudaStream_t stream) {
  launch_dependent(query_general_kernel, one_by_one(a), 128, 0, stream, a);
}
void launch_latent_output_general(const ProjectArgs& a, cudaStream_t stream) {
  launch_dependent(output_general_kernel, one_by_one(a), 128, 0, stream, a);
}

}  // namespace dg::cuda
