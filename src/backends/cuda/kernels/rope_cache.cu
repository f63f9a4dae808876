// What stands between the projections of an attention block and attention itself, in one kernel each: rotation (after a norm) and the
// cache write. In a decode step their time is that of one load and one store; everything that no other kernel wrote is loaded before the
// wait. In prefill they are bound by memory: 8 bytes for a rotated element, 4 + the cache's for one of k and v more.
#include <algorithm>

#include "backends/cuda/kernels/cache_store.cuh"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/row_norm.cuh"

namespace dg::cuda {
namespace {

constexpr int kWarps = 4;

// 32 kChunks columns of a head, lane l with columns l + 32 i. Int8 groups are two chunks: heads are multiples of 64 columns.
template <int kChunks>
__device__ __forceinline__ void store_head(const CacheRows& c, int slot, int64_t column, const float (&x)[kChunks], int lane) {
  unsigned char* const row = cache_row(c, slot);
  const auto plain = [&](auto* to, auto convert) {
#pragma unroll
    for (int i = 0; i < kChunks; i++) to[column + lane + 32 * i] = convert(x[i]);
  };
  switch (c.element) {
    case Element::kF32: return plain(reinterpret_cast<float*>(row), [](float v) { return v; });
    case Element::kBf16: return plain(reinterpret_cast<uint16_t*>(row), [](float v) { return float_to_bf16_bits(v); });
    case Element::kF16: return plain(reinterpret_cast<uint16_t*>(row), [](float v) { return float_to_f16_bits(v); });
    case Element::kE4m3: return plain(row, [](float v) { return float_to_e4m3_bits(v); });
    case Element::kInt8: break;
  }
#pragma unroll
  for (int g = 0; g < kChunks / 2; g++) {
    uint32_t largest = max(magnitude_bits(x[2 * g]), magnitude_bits(x[2 * g + 1]));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    const Int8Scale scale(largest);
    row[column + 64 * g + lane] = scale.code(x[2 * g]);
    row[column + 64 * g + 32 + lane] = scale.code(x[2 * g + 1]);
    if (lane == 0) scale.store(row, c.width, column / kInt8Group + g);
  }
}

// A block: a token and some of its heads (of q, then k, then v), a warp for each in turn. Lane l has columns l + 32 i, so that both
// halves of a rotated pair are its own.
template <int kChunks>
__global__ void __launch_bounds__(kWarps * 32) rope_cache_kernel(const RopeCacheArgs a) {
  constexpr int kDim = 32 * kChunks, kHalf = kChunks / 2;
  static_assert(kHalf * 32 <= kWarps * 32);
  __shared__ float2 turns[kHalf * 32];
  start_next();
  const bool turning = threadIdx.x < kHalf * 32;
  const float frequency = turning ? a.inv_freq[threadIdx.x] : 0;
  const int lane = threadIdx.x % 32, units = a.heads + 2 * a.kv_heads, stride = static_cast<int>(gridDim.y) * kWarps;
  const int64_t row = blockIdx.x;
  wait_for_previous();

  const auto place = [&](int unit) -> const float* {
    if (unit < a.heads) return a.q + row * a.q_row + unit * a.q_head;
    const int head = unit - a.heads;
    return head < a.kv_heads ? a.k + row * a.k_row + head * kDim : a.v + row * a.v_row + (head - a.kv_heads) * kDim;
  };
  float x[kChunks];
  const auto load = [&](int unit) {
    if (unit >= units) return;
    const float* const from = place(unit) + lane;
#pragma unroll
    for (int i = 0; i < kChunks; i++) x[i] = from[32 * i];
  };
  int unit = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x / 32);
  load(unit);
  const int slot = a.slots[row];
  if (turning) {
    float sine, cosine;
    sincosf(__fmul_rn(static_cast<float>(a.positions[row]), frequency), &sine, &cosine);
    turns[threadIdx.x] = {cosine * a.magnitude, sine * a.magnitude};
  }
  __syncthreads();
  for (; unit < units; unit += stride, load(unit)) {
    const bool query = unit < a.heads, key = !query && unit < a.heads + a.kv_heads;
    if (query || key) {
      const float* const weight = query ? a.q_weight : a.k_weight;
      if (weight) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kChunks; i++) sum = __fmaf_rn(x[i], x[i], sum);
        const float inverse = inverse_root(warp_sum(sum), kDim, a.eps);
#pragma unroll
        for (int i = 0; i < kChunks; i++) x[i] = x[i] * inverse * weight[lane + 32 * i];
      }
      float* const to = const_cast<float*>(place(unit)) + lane;
#pragma unroll
      for (int i = 0; i < kHalf; i++) {
        const float2 turn = turns[lane + 32 * i];
        const float u = x[i], v = x[i + kHalf];
        to[32 * i] = x[i] = u * turn.x - v * turn.y;
        to[32 * (i + kHalf)] = x[i + kHalf] = v * turn.x + u * turn.y;
      }
    }
    if (query || slot < 0) continue;
    const int head = unit - a.heads;
    if (key) store_head(a.k_cache, slot, int64_t{head} * kDim, x, lane);
    else store_head(a.v_cache, slot, int64_t{head - a.kv_heads} * kDim, x, lane);
  }
}

template <int kChunks>
void launch_rope(const RopeCacheArgs& a, cudaStream_t stream) {
  // With few tokens the heads are spread over blocks; with many, several heads share the angles of a token.
  const int64_t most = (a.heads + 2 * a.kv_heads + kWarps - 1) / kWarps, across = std::clamp<int64_t>(1024 / a.rows, 1, most);
  launch_dependent(rope_cache_kernel<kChunks>, dim3(static_cast<unsigned>(a.rows), static_cast<unsigned>(across)), kWarps * 32, 0, stream,
                   a);
}

// Two neighbouring pairs.
__device__ __forceinline__ float4 rotate_pairs(float4 x, float position, float2 frequency, float magnitude) {
  float sine, cosine;
  sincosf(__fmul_rn(position, frequency.x), &sine, &cosine);
  sine *= magnitude, cosine *= magnitude;
  const float4 first = {x.x * cosine - x.y * sine, x.y * cosine + x.x * sine, x.z, x.w};
  sincosf(__fmul_rn(position, frequency.y), &sine, &cosine);
  sine *= magnitude, cosine *= magnitude;
  return {first.x, first.y, x.z * cosine - x.w * sine, x.w * cosine + x.z * sine};
}

__device__ __forceinline__ float2 pair_frequencies(const LatentCacheArgs& a, int four) {
  return {a.inv_freq[2 * four], a.inv_freq[2 * four + 1]};
}

// Four columns of the latent row for each thread: norm of the first kv_lora, rotation of the others, the row of the cache.
__device__ __forceinline__ void latent_part(const LatentCacheArgs& a, int64_t row, float* sums) {
  const int four = threadIdx.x, normed = a.kv_lora / 4, all = (a.kv_lora + a.rope) / 4;
  const bool used = four < all, rotated = used && four >= normed;
  float4 weight = {0, 0, 0, 0};
  float2 frequency = {0, 0};
  if (four < normed) weight = reinterpret_cast<const float4*>(a.weight)[four];
  else if (rotated) frequency = pair_frequencies(a, four - normed);
  wait_for_previous();

  auto* const place = reinterpret_cast<float4*>(a.latent + row * a.latent_row) + four;
  float4 x = {0, 0, 0, 0};
  if (used) x = *place;
  const int slot = a.slots[row];
  if (rotated) x = rotate_pairs(x, static_cast<float>(a.positions[row]), frequency, a.magnitude);
  const float sum = block_sum(four < normed ? add_squares(0, x) : 0, sums, static_cast<int>(blockDim.x / 32));
  if (four < normed) x = scaled(x, inverse_root(sum, a.kv_lora, a.eps), weight);
  if (used) *place = x;
  if (slot < 0) return;
  unsigned char* const to = cache_row(a.cache, slot);
  const int64_t column = int64_t{4} * four;
  switch (a.cache.element) {
    case Element::kF32: return used ? store_four<Element::kF32>(to, column, x, a.cache_by_four) : void();
    case Element::kBf16: return used ? store_four<Element::kBf16>(to, column, x, a.cache_by_four) : void();
    case Element::kF16: return used ? store_four<Element::kF16>(to, column, x, a.cache_by_four) : void();
    case Element::kE4m3: return used ? store_four<Element::kE4m3>(to, column, x, a.cache_by_four) : void();
    case Element::kInt8: break;
  }
  // A group is 16 neighbouring lanes; those behind the row have zeros.
  uint32_t largest = max(max(magnitude_bits(x.x), magnitude_bits(x.y)), max(magnitude_bits(x.z), magnitude_bits(x.w)));
#pragma unroll
  for (int step = 8; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (!used) return;
  const Int8Scale scale(largest);
  to[column] = scale.code(x.x), to[column + 1] = scale.code(x.y), to[column + 2] = scale.code(x.z), to[column + 3] = scale.code(x.w);
  if (four % 16 == 0) scale.store(to, a.cache.width, four / 16);
}

// The norm of the low-rank query, four columns for each thread.
__device__ __forceinline__ void low_query_part(const LatentCacheArgs& a, int64_t row, float* sums) {
  const bool used = static_cast<int>(threadIdx.x) < a.q_lora / 4;
  float4 weight = {0, 0, 0, 0}, x = weight;
  if (used) weight = reinterpret_cast<const float4*>(a.q_low_weight)[threadIdx.x];
  wait_for_previous();
  auto* const place = reinterpret_cast<float4*>(a.q_low + row * a.q_low_row) + threadIdx.x;
  if (used) x = *place;
  const float inverse = inverse_root(block_sum(add_squares(0, x), sums, static_cast<int>(blockDim.x / 32)), a.q_lora, a.eps);
  if (used) *place = scaled(x, inverse, weight);
}

// Rotation of the queries of a token, from group `first` of all its heads on.
__device__ __forceinline__ void query_part(const LatentCacheArgs& a, int64_t row, int first) {
  const int each = a.rope / 4, index = first + static_cast<int>(threadIdx.x), head = index / each, four = index % each;
  const bool used = head < a.heads;
  float2 frequency = {0, 0};
  if (used) frequency = pair_frequencies(a, four);
  wait_for_previous();
  if (!used) return;
  auto* const place = reinterpret_cast<float4*>(a.q_pe + row * a.q_row + head * a.q_head) + four;
  *place = rotate_pairs(*place, static_cast<float>(a.positions[row]), frequency, a.magnitude);
}

// Block y: 0 the latent row, then the low-rank query if there is one, then pieces of the queries.
__global__ void __launch_bounds__(1024) latent_cache_kernel(const LatentCacheArgs a) {
  __shared__ float sums[32];
  start_next();
  const int64_t row = blockIdx.x;
  const int part = blockIdx.y, low = a.q_low ? 1 : 0;
  if (part == 0) latent_part(a, row, sums);
  else if (part <= low) low_query_part(a, row, sums);
  else query_part(a, row, (part - 1 - low) * static_cast<int>(blockDim.x));
}

}  // namespace

void launch_rope_cache(const RopeCacheArgs& a, int head_dim, cudaStream_t stream) {
  switch (head_dim) {
    case 64: return launch_rope<2>(a, stream);
    case 128: return launch_rope<4>(a, stream);
    case 192: return launch_rope<6>(a, stream);
    default: return launch_rope<8>(a, stream);
  }
}

void launch_latent_cache(const LatentCacheArgs& a, cudaStream_t stream) {
  const int threads = (std::max(a.kv_lora + a.rope, a.q_lora) / 4 + 31) / 32 * 32;
  const int pieces = a.q_pe ? (a.heads * a.rope / 4 + threads - 1) / threads : 0;
  launch_dependent(latent_cache_kernel, dim3(static_cast<unsigned>(a.rows), static_cast<unsigned>(1 + (a.q_low ? 1 : 0) + pieces)),
                   static_cast<unsigned>(threads), 0, stream, a);
}

}  // namespace dg::cuda
