// Latent attention of long prefills: k and v of some heads are made from the latent rows of the whole context, then attention as usual
// with 192 columns of q and k (128 of its own and the rotary 64 that all heads share) and 128 of v. Per (row, position, head) this takes
// 640 flops against 2176 of the absorbed form, and 2 x 512 x 256 for each (position, head): it pays from about 170 rows on.
//
//   gather: the paged rows as bf16 without gaps. 2 x 1152 bytes a position.
//   make: product of (positions x 512) and (512 x 256 heads) in tiles of 128 x 128, four warps of 64 x 64, three stages of 64 columns.
//         Each fragment read from shared memory is used four times: one mma a clock, the rate of mma.sync. Expected: 400 TFLOP/s.
//   attend: as attention_prefill.cu, 128 rows of one head; K and V have one buffer each, V arrives while the scores are multiplied and
//         the next K while the values are. Expected: 300 TFLOP/s.
#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 128, kLatentRow = kLatent + kLatentRope, kMadeRow = kMadeNope + kMadeValue;

template <Element kElement>
__global__ void gather_kernel(const CacheView cache, const int32_t* blocks, int kv_len, uint16_t* latent) {
  constexpr int kChunks = kLatentRow / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(kv_len) * kChunks) return;
  const int position = static_cast<int>(i / kChunks), chunk = static_cast<int>(i % kChunks);
  *reinterpret_cast<uint4*>(latent + i * 8) = load_eight<kElement>(cache, cache_row(cache, blocks, position), chunk * 8);
}

// made (rows, columns) = latent (rows, first 512 of 576) x weight (columns, 512)^T. Columns are a multiple of 128.
constexpr int kTile = 128, kStep = 64, kStages = 3, kSide = kTile * kStep * 2, kMakeShared = kStages * 2 * kSide;

__global__ void __launch_bounds__(kThreads)
    make_kernel(const uint16_t* latent, const uint16_t* weight, uint16_t* made, int rows, int columns) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int first_column = blockIdx.x * kTile, first_row = blockIdx.y * kTile;
  const uint32_t stages = shared_address(shared);
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;

  auto issue = [&](int step) {
    const uint32_t to = stages + static_cast<uint32_t>(step % kStages * 2 * kSide);
#pragma unroll
    for (int i = 0; i < kTile / 16; i++) {
      const int row = copy_row + 16 * i, from = min(first_row + row, rows - 1);
      const uint32_t place = tile_address(to, row, chunk, kStep * 2);
      copy_async(place, latent + static_cast<int64_t>(from) * kLatentRow + step * kStep + chunk * 8, first_row + row < rows);
      copy_async(place + kSide, weight + static_cast<int64_t>(first_column + row) * kLatent + step * kStep + chunk * 8, true);
    }
  };
  constexpr int kSteps = kLatent / kStep;
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) issue(i), copy_async_commit();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp / 2 * 64, warp_column = warp % 2 * 64;
  float acc[4][8][4] = {};
  for (int step = 0; step < kSteps; step++) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < kSteps) issue(step + kStages - 1);
    copy_async_commit();
    const uint32_t a_tile = stages + static_cast<uint32_t>(step % kStages * 2 * kSide), b_tile = a_tile + kSide;
#pragma unroll
    for (int k = 0; k < kStep / 16; k++) {
      uint32_t a[4][4];
#pragma unroll
      for (int m = 0; m < 4; m++) load_matrices(a[m], fragment_a(a_tile, warp_row + m * 16, 2 * k, kStep * 2, lane));
#pragma unroll
      for (int n = 0; n < 4; n++) {
        uint32_t b[4];
        load_matrices(b, fragment_k(b_tile, warp_column + n * 16, 2 * k, kStep * 2, lane));
#pragma unroll
        for (int m = 0; m < 4; m++) {
          mma(acc[m][2 * n], a[m], b[0], b[1]);
          mma(acc[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 4; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + warp_row + m * 16 + half * 8 + g;
      if (row >= rows) continue;
      uint16_t* const to = made + static_cast<int64_t>(row) * columns + first_column + warp_column + 2 * t;
#pragma unroll
      for (int n = 0; n < 8; n++) *reinterpret_cast<uint32_t*>(to + n * 8) = pack_bf16(acc[m][n][2 * half], acc[m][n][2 * half + 1]);
    }
}

constexpr int kWarps = 4, kWarpTiles = 2, kRows = kWarps * kWarpTiles * 16, kTokens = 64;
constexpr int kKeyBytes = (kMadeNope + kLatentRope) * 2, kValueBytes = kMadeValue * 2;
constexpr int kQueries = kRows * kKeyBytes, kKeys = kTokens * kKeyBytes, kValues = kTokens * kValueBytes;
constexpr int kAttendShared = kQueries + kKeys + kValues;

__global__ void __launch_bounds__(kThreads) attend_kernel(const MadeArgs a) {
  constexpr int kSteps = kKeyBytes / 32, kChunks = kKeyBytes / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  const int head = blockIdx.y, first_row = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * kRows;  // longest first
  const int before = a.kv_len - a.q_len + 1;                                                                          // what row 0 sees
  const int end = before + min(first_row + kRows, a.q_len) - 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t q_tile = shared_address(shared), k_tile = q_tile + kQueries, v_tile = k_tile + kKeys;
  const int64_t made_row = static_cast<int64_t>(a.heads) * kMadeRow;
  const uint16_t* const made = a.made + head * kMadeRow;

  auto issue_keys = [&](int at) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; i++) {
      const int row = threadIdx.x / 16 + 8 * i, chunk = threadIdx.x % 16;
      copy_async(tile_address(k_tile, row, chunk, kKeyBytes), made + min(at + row, end - 1) * made_row + chunk * 8, at + row < end);
    }
#pragma unroll
    for (int i = 0; i < kTokens / 16; i++) {
      const int row = threadIdx.x / 8 + 16 * i, chunk = threadIdx.x % 8;
      copy_async(tile_address(k_tile, row, kMadeNope / 8 + chunk, kKeyBytes),
                 a.latent + static_cast<int64_t>(min(at + row, end - 1)) * kLatentRow + kLatent + chunk * 8, at + row < end);
    }
    copy_async_commit();
  };
  auto issue_values = [&](int at) {
#pragma unroll
    for (int i = 0; i < kTokens / 8; i++) {
      const int row = threadIdx.x / 16 + 8 * i, chunk = threadIdx.x % 16;
      copy_async(tile_address(v_tile, row, chunk, kValueBytes), made + min(at + row, end - 1) * made_row + kMadeNope + chunk * 8,
                 at + row < end);
    }
    copy_async_commit();
  };
  issue_keys(0);

  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int m = i / kChunks, chunk = i % kChunks, row = first_row + m;
    uint4 v = {0, 0, 0, 0};
    if (row < a.q_len) {
      const float* from = a.q + row * a.q_row + head * a.q_head + chunk * 8;
      v = {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7])};
    }
    store_chunk(tile_address(q_tile, m, chunk, kKeyBytes), v);
  }

  const int warp_row = warp * kWarpTiles * 16, warp_first = first_row + warp_row;
  int limit[kWarpTiles][2];
#pragma unroll
  for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = warp_first + m * 16 + half * 8 + g;
      limit[m][half] = row < a.q_len ? before + row : 0;
    }
  const int all_see = warp_first + kWarpTiles * 16 <= a.q_len ? before + warp_first : 0;  // positions that need no mask
  const int warp_end = warp_first < a.q_len ? before + min(warp_first + kWarpTiles * 16, a.q_len) - 1 : 0;

  float acc[kWarpTiles][kMadeValue / 8][4] = {};
  RunningRow rows[kWarpTiles][2];
  const float scale = a.scale * kLog2E;
  for (int at = 0; at < end; at += kTokens) {
    copy_async_wait<0>();
    __syncthreads();  // K is there for all (and at first Q); V of the tile before is used up
    issue_values(at);
    const bool active = at < warp_end;
    float s[kWarpTiles][kTokens / 8][4] = {};
    if (active) {
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        uint32_t q[kWarpTiles][4];
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) load_matrices(q[m], fragment_a(q_tile, warp_row + m * 16, 2 * step, kKeyBytes, lane));
#pragma unroll
        for (int n = 0; n < kTokens / 16; n++) {
          uint32_t b[4];
          load_matrices(b, fragment_k(k_tile, n * 16, 2 * step, kKeyBytes, lane));
#pragma unroll
          for (int m = 0; m < kWarpTiles; m++) {
            mma(s[m][2 * n], q[m], b[0], b[1]);
            mma(s[m][2 * n + 1], q[m], b[2], b[3]);
          }
        }
      }
    }
    copy_async_wait<0>();
    __syncthreads();  // V is there for all; K is used up
    if (at + kTokens < end) issue_keys(at + kTokens);
    if (!active) continue;
    uint32_t p[kWarpTiles][kTokens / 16][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; m++) {
      float shrink[2];
      softmax_step(s[m], rows[m], shrink, limit[m], at, at + kTokens > all_see, scale, t);
      shrink_rows(acc[m], shrink);
      pack_weights(p[m], s[m]);
    }
#pragma unroll
    for (int n = 0; n < kTokens / 16; n++)
#pragma unroll
      for (int j = 0; j < kMadeValue / 16; j++) {
        uint32_t b[4];
        load_matrices_transposed(b, fragment_a(v_tile, n * 16, 2 * j, kValueBytes, lane));
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) {
          mma(acc[m][2 * j], p[m][n], b[0], b[1]);
          mma(acc[m][2 * j + 1], p[m][n], b[2], b[3]);
        }
      }
  }

#pragma unroll
  for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float inverse = 1.0f / quad_sum(rows[m][half].sum);
      const int row = warp_first + m * 16 + half * 8 + g;
      if (row >= a.q_len) continue;
      float* const out = a.out + row * a.out_row + head * a.out_head + 2 * t;
#pragma unroll
      for (int n = 0; n < kMadeValue / 8; n++) {
        out[n * 8] = acc[m][n][2 * half] * inverse;
        out[n * 8 + 1] = acc[m][n][2 * half + 1] * inverse;
      }
    }
}

template <Element kElement>
void gather(const CacheView& cache, const int32_t* blocks, int kv_len, uint16_t* latent, cudaStream_t stream) {
  const int64_t chunks = static_cast<int64_t>(kv_len) * (kLatentRow / 8);
  gather_kernel<kElement><<<static_cast<unsigned>((chunks + 255) / 256), 256, 0, stream>>>(cache, blocks, kv_len, latent);
}

}  // namespace

void launch_gather_latent(const CacheView& cache, const int32_t* blocks, int kv_len, uint16_t* latent, cudaStream_t stream) {
  switch (cache.element) {
    case Element::kBf16: return gather<Element::kBf16>(cache, blocks, kv_len, latent, stream);
    case Element::kF16: return gather<Element::kF16>(cache, blocks, kv_len, latent, stream);
    case Element::kE4m3: return gather<Element::kE4m3>(cache, blocks, kv_len, latent, stream);
    default: return gather<Element::kInt8>(cache, blocks, kv_len, latent, stream);
  }
}

void launch_make_keys_values(const MadeArgs& a, cudaStream_t stream) {
  allow_shared_memory<make_kernel>(kMakeShared);
  const int columns = a.heads * kMadeRow;
  const dim3 grid(static_cast<unsigned>(columns / kTile), static_cast<unsigned>((a.kv_len + kTile - 1) / kTile));
  make_kernel<<<grid, kThreads, kMakeShared, stream>>>(a.latent, a.weight, a.made, a.kv_len, columns);
}

void launch_made_attention(const MadeArgs& a, cudaStream_t stream) {
  allow_shared_memory<attend_kernel>(kAttendShared);
  const dim3 grid(static_cast<unsigned>((a.q_len + kRows - 1) / kRows), static_cast<unsigned>(a.heads));
  attend_kernel<<<grid, kThreads, kAttendShared, stream>>>(a);
}

}  // namespace dg::cuda
