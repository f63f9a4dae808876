// The second half of pick_rows: two blocks for each row, on the maxima and sums of its chunks (sample_scan.cu).
//
// Candidates: at least n logits reach the n-th largest chunk maximum, so only chunks that reach it are read again (n * 1 KB at most, from
// L2; for a greedy pick one chunk). What reaches it is seldom much more than n and is sorted in shared memory. Where it is (equal
// logits, few chunks), a radix select over (logit, column) finds the threshold first: exact, ties go to the lower id. Shared counters are
// integers and the list is sorted by a total order: the same result every time.
//
// Sums: one thread adds the chunks' weights as doubles in order, as the host's sampler does: 594 additions for 152064 logits, ~3 us,
// beside the other block.
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/sample_exp2.cuh"
#include "backends/cuda/kernels/sample_kernels.h"

namespace dg::cuda {

void launch_scan_rows(const PickArgs& args, cudaStream_t stream);  // sample_scan.cu

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kMostChunks = static_cast<int>(kMostPickColumns / static_cast<int64_t>(kChunk));  // one for each thread
static_assert(kMostChunks == kThreads);
constexpr unsigned kListed = 2048;  // elements that are sorted
static_assert(kListed >= kMostCandidates && kListed == 2 * kThreads);

// Larger logits have larger keys; 0 for NaN and -inf, which are never picked. -0 and 0 are equal.
__device__ __forceinline__ uint32_t key_of(float logit) {
  if (!(logit > -INFINITY)) return 0;
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// In the order of candidates: by logit, of equals the lower column.
__device__ __forceinline__ uint64_t rank_of(uint32_t key, uint32_t column) { return static_cast<uint64_t>(key) << 32 | ~column; }

struct Selection {
  uint32_t keys[kMostChunks];  // of the chunk maxima
  uint64_t list[kListed];
  uint32_t histogram[256];
  uint32_t found;
  uint64_t prefix;
  uint32_t needed, above;
  int shift;
};

// Calls f(rank, valid) for the logits of all chunks whose maximum reaches `bound`; whole warps, valid where the logit does.
template <class F>
__device__ __forceinline__ void for_each_reaching(const PickArgs& a, const float* logits, const uint32_t* keys, uint32_t bound, F f) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kAtOnce = 2, kOwn = kChunk / 32;  // two chunks' loads in flight
  for (int first = warp; first < a.chunks; first += kAtOnce * kWarps) {
    uint32_t own[kAtOnce][kOwn];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int chunk = first + i * kWarps, begin = chunk * static_cast<int>(kChunk) + lane;
      const bool reaches = chunk < a.chunks && keys[chunk] >= bound;
#pragma unroll
      for (int j = 0; j < kOwn; j++) own[i][j] = reaches && begin + 32 * j < a.columns ? key_of(logits[begin + 32 * j]) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int chunk = first + i * kWarps, begin = chunk * static_cast<int>(kChunk) + lane;
      if (chunk >= a.chunks || keys[chunk] < bound) continue;
#pragma unroll
      for (int j = 0; j < kOwn; j++) f(rank_of(own[i][j], static_cast<uint32_t>(begin + 32 * j)), own[i][j] >= bound);
    }
  }
}

// Ranks of at least `threshold` into the list; s.found counts all of them.
__device__ void collect(const PickArgs& a, const float* logits, Selection& s, uint64_t threshold) {
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  for_each_reaching(a, logits, s.keys, static_cast<uint32_t>(threshold >> 32), [&](uint64_t rank, bool valid) {
    const bool taken = valid && rank >= threshold;
    const unsigned lane = threadIdx.x % 32, votes = __ballot_sync(0xffffffffu, taken);
    if (votes == 0) return;
    uint32_t place = 0;
    if (lane == 0) place = atomicAdd(&s.found, static_cast<uint32_t>(__popc(votes)));
    place = __shfl_sync(0xffffffffu, place, 0) + static_cast<uint32_t>(__popc(votes & ((1u << lane) - 1)));
    if (taken && place < kListed) s.list[place] = rank;
  });
  __syncthreads();
}

// A rank that at least n and at most kListed others reach; more than kListed reach bound << 32. Digits of 8 bits from the top.
__device__ uint64_t refine(const PickArgs& a, const float* logits, Selection& s, uint32_t bound, uint32_t n) {
  if (threadIdx.x == 0) s.prefix = 0, s.needed = n, s.above = 0, s.shift = 56;
  for (;;) {
    __syncthreads();
    const int shift = s.shift;
    const uint64_t prefix = s.prefix;
    if (threadIdx.x < 256) s.histogram[threadIdx.x] = 0;
    __syncthreads();
    for_each_reaching(a, logits, s.keys, bound, [&](uint64_t rank, bool valid) {
      // The digits above this one are those of the prefix. (A shift by 64 is undefined.)
      const bool taken = valid && (shift == 56 || rank >> (shift + 8) == prefix);
      const unsigned votes = __ballot_sync(0xffffffffu, taken);
      if (votes == 0) return;
      const uint32_t digit = static_cast<uint32_t>(rank >> shift) & 255;
      const int first = __ffs(static_cast<int>(votes)) - 1;
      const uint32_t common = __shfl_sync(0xffffffffu, digit, first);
      // Equal digits are counted at once: logits of a row are mostly alike in their first ones.
      const unsigned alike = __ballot_sync(0xffffffffu, taken && digit == common);
      if (static_cast<int>(threadIdx.x % 32) == first) atomicAdd(&s.histogram[common], static_cast<uint32_t>(__popc(alike)));
      if (taken && digit != common) atomicAdd(&s.histogram[digit], 1u);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      uint32_t above = 0;  // of this prefix, with a larger digit
      while (digit > 0 && above + s.histogram[digit] < s.needed) above += s.histogram[digit--];
      s.prefix = prefix << 8 | static_cast<uint64_t>(digit);
      s.above += above;
      s.needed -= above;
      s.shift = s.above + s.histogram[digit] <= kListed || shift == 0 ? -1 - shift : shift - 8;  // negative: done at this digit
    }
    __syncthreads();
    if (s.shift < 0) return s.prefix << (-1 - s.shift);
  }
}

// The first `count` elements of the list, falling; zeros fill it up to a power of two.
__device__ void sort_falling(uint64_t* list, uint32_t count) {
  uint32_t size = 2;
  while (size < count) size *= 2;
  for (uint32_t i = threadIdx.x; i < size; i += kThreads)
    if (i >= count) list[i] = 0;
  __syncthreads();
  for (uint32_t width = 2; width <= size; width *= 2)
    for (uint32_t distance = width / 2; distance > 0; distance /= 2) {
      const uint32_t pair = threadIdx.x;
      if (pair < size / 2) {
        const uint32_t low = pair / distance * distance * 2 + pair % distance, high = low + distance;
        const uint64_t x = list[low], y = list[high];
        if ((x < y) == ((low & width) == 0)) list[low] = y, list[high] = x;
      }
      __syncthreads();
    }
}

__device__ void select_candidates(const PickArgs& a, int64_t row, const PickSpec& spec) {
  __shared__ Selection s;
  const float* const logits = a.logits + row * a.stride;
  const auto n = static_cast<uint32_t>(min(spec.candidates, a.most));
  const int chunk = static_cast<int>(threadIdx.x);
  const uint32_t key = chunk < a.chunks ? key_of(a.chunk_max[row * a.chunks + chunk]) : 0;
  s.keys[chunk] = key;
  // The n-th largest of the keys, bit by bit; 0 where they are fewer.
  uint32_t bound = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; bit--) {
    const uint32_t higher = bound | 1u << bit;
    if (static_cast<uint32_t>(__syncthreads_count(key >= higher)) >= n) bound = higher;
  }
  if (bound == 0) bound = 1;
  __syncthreads();
  collect(a, logits, s, static_cast<uint64_t>(bound) << 32);
  uint32_t found = s.found;
  if (found > kListed) {
    const uint64_t threshold = refine(a, logits, s, bound, n);
    collect(a, logits, s, max(threshold, static_cast<uint64_t>(bound) << 32));
    found = s.found;
  }
  sort_falling(s.list, found);
  const uint32_t count = min(n, found);
  int32_t* const out = a.out + row * a.words;
  auto* const header = reinterpret_cast<PickHeader*>(out);
  int32_t* const listed = out + sizeof(PickHeader) / 4;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    listed[i] = static_cast<int32_t>(__float_as_uint(logit_of(static_cast<uint32_t>(s.list[i] >> 32))));
    listed[a.most + i] = a.first_id + static_cast<int32_t>(~static_cast<uint32_t>(s.list[i]));
  }
  if (threadIdx.x == 0) {
    header->max = found > 0 ? logit_of(static_cast<uint32_t>(s.list[0] >> 32)) : -INFINITY;
    header->count = static_cast<int32_t>(count);
    header->complete = count < static_cast<uint32_t>(spec.candidates);
  }
}

struct Masses {
  float max[kMostChunks];
  float group_max[kWarps];
  double weights[2][kMostChunks];  // of the chunks: at `scale`, at 1
  int drawn;
};

__device__ void sum_and_draw(const PickArgs& a, int64_t row, const PickSpec& spec) {
  __shared__ Masses s;
  const int chunk = static_cast<int>(threadIdx.x), warp = chunk / 32, lane = chunk % 32;
  const int64_t at = row * a.chunks + chunk;
  const float max = chunk < a.chunks ? a.chunk_max[at] : -INFINITY;
  // The largest maximum of this and the chunks before: in the warp, then over the warps before.
  float so_far = max;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, so_far, distance);
    if (lane >= distance) so_far = fmaxf(so_far, other);
  }
  if (lane == 31) s.group_max[warp] = so_far;
  float before = __shfl_up_sync(0xffffffffu, so_far, 1);
  if (lane == 0) before = -INFINITY;
  __syncthreads();
  float row_max = -INFINITY;
#pragma unroll 1
  for (int group = 0; group < kWarps; group++) {
    if (group == warp) before = fmaxf(before, row_max);
    row_max = fmaxf(row_max, s.group_max[group]);
  }
  auto weight = [&](const float* sums, float scale) -> double {
    const bool counts = max > -INFINITY && !(__fmul_rn(__fsub_rn(max, before), scale) < -kNegligibleBits);
    const float sum = counts ? sums[at] : 0;
    return sum > 0 ? __dmul_rn(sum, exp2_exact(__fmul_rn(__fsub_rn(max, row_max), scale))) : 0;
  };
  const int flags = spec.flags;
  s.weights[0][chunk] = flags & kPickSums ? weight(a.chunk_sum, spec.scale) : 0;
  s.weights[1][chunk] = flags & kPickSumsAtOne ? weight(a.chunk_sum_at_one, kLog2E) : 0;
  __syncthreads();
  int32_t* const out = a.out + row * a.words;
  auto* const header = reinterpret_cast<PickHeader*>(out);
  if (lane == 0 && warp < 2) {  // one warp for each sum
    const double* const weights = s.weights[warp];
    double total = 0;
    if (flags & (warp == 0 ? kPickSums : kPickSumsAtOne)) {
#pragma unroll 16
      for (int c = 0; c < a.chunks; c++) total = __dadd_rn(total, weights[c]);
    }
    if (warp == 1) {
      header->total_at_one = total;
    } else {
      double left = 0;
      int drawn = -1;
      if (flags & kPickDraw) {
        left = __dmul_rn(spec.uniform, total);
        for (int c = 0; c < a.chunks; c++) {
          const double w = weights[c];
          if (w > 0) drawn = c;
          if (left < w) break;
          left = __dsub_rn(left, w);
        }
      }
      header->total = total;
      header->left = left;
      header->chunk = drawn;
      s.drawn = drawn;
    }
  }
  if (!(flags & kPickDraw)) return;
  __syncthreads();
  if (chunk < static_cast<int>(kChunk)) {
    const int column = s.drawn * static_cast<int>(kChunk) + chunk;
    const float logit = s.drawn >= 0 && column < a.columns ? a.logits[row * a.stride + column] : -INFINITY;
    out[sizeof(PickHeader) / 4 + 2 * a.most + chunk] = static_cast<int32_t>(__float_as_uint(logit));
  }
}

// blockIdx.x = 0: candidates; 1: sums. They write different words of the row of results.
__global__ void __launch_bounds__(kThreads, 1) select_kernel(const PickArgs a) {
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const PickSpec& spec = a.specs[row];
  if (spec.candidates == 0) return;
  if (blockIdx.x == 0) select_candidates(a, row, spec);
  else sum_and_draw(a, row, spec);
}

}  // namespace

void launch_pick_rows(const PickArgs& a, cudaStream_t stream) {
  launch_scan_rows(a, stream);
  launch_dependent(select_kernel, dim3(2, static_cast<unsigned>(a.rows)), dim3(kThreads), 0, stream, a);
}

}  // namespace dg::cuda
