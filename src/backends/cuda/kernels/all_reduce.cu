// The GPU's side of collective.h. Bytes over NVLink for x of S bytes and n ranks, in each direction: push and one shot (n - 1) S, two
// shot 2 (n - 1) / n S. Small messages are bound by latency. Push: load x, a store on its way (about 1 us), a poll of the own memory;
// one shot: a copy, a fence, a flag on its way, a read of the other's memory there and back.
// What other GPUs write is read with ld.relaxed.sys, which passes L1; flags with acquire and release of system scope.
#include <cooperative_groups.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "backends/cuda/kernels/all_reduce.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/row_norm.cuh"

namespace dg::cuda {
namespace {

constexpr int kThreads = 512, kFewThreads = 128;  // kFewThreads: messages of fewer elements than a full grid has, over more blocks
constexpr int kMostParts = 8;                     // the portable size of a cluster

struct Gpu {
  // Only of row_sum.
  float (*sums)[32] = nullptr;  // shared memory, [row % 2][warp of the row]
  int parts = 1, row_warps = 1;
  int rows_done = 0;

  DG_COLLECTIVE int thread() const { return static_cast<int>(threadIdx.x); }
  DG_COLLECTIVE int threads() const { return static_cast<int>(blockDim.x); }
  DG_COLLECTIVE int block() const { return static_cast<int>(blockIdx.x); }
  DG_COLLECTIVE int blocks() const { return static_cast<int>(gridDim.x); }
  DG_COLLECTIVE void sync() const { __syncthreads(); }
  DG_COLLECTIVE bool all(bool v) const { return __syncthreads_and(v) != 0; }
  DG_COLLECTIVE void wait_for_previous() const { dg::cuda::wait_for_previous(); }
  DG_COLLECTIVE void start_next() const { dg::cuda::start_next(); }

  DG_COLLECTIVE static uint64_t acquire(const uint64_t* p) {
    uint64_t v;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
  }
  DG_COLLECTIVE static void release(uint64_t* p, uint64_t v) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
  }
  DG_COLLECTIVE static void publish(uint32_t* p, uint32_t v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
  }
  DG_COLLECTIVE static uint64_t get(const uint64_t* p) {
    uint64_t v;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
  }
  DG_COLLECTIVE static uint32_t get(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
  }
  DG_COLLECTIVE static void set(uint64_t* p, uint64_t v) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
  }
  DG_COLLECTIVE static void set(uint32_t* p, uint32_t v) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
  }
  DG_COLLECTIVE static uint32_t swap(uint32_t* p, uint32_t v) { return atomicExch(p, v); }
  DG_COLLECTIVE static void pause() {}
  DG_COLLECTIVE static int64_t now_ns() {
    int64_t v;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v));
    return v;
  }
  // wait_for_previous() lets a kernel go on when all earlier ones of its GPU have ended and what they wrote is performed, so a number
  // of this kernel says so without a fence.
  DG_COLLECTIVE static void heard(int) {}

  DG_COLLECTIVE static float one(const float* p) {
    float v;
    asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
  }
  // Missing elements of the last group are zero.
  template <bool kVector>
  DG_COLLECTIVE static Four load(const float* p, int64_t left) {
    Four v{0, 0, 0, 0};
    if constexpr (kVector) {
      asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
    } else {
      if (left > 0) v.x = one(p);
      if (left > 1) v.y = one(p + 1);
      if (left > 2) v.z = one(p + 2);
      if (left > 3) v.w = one(p + 3);
    }
    return v;
  }
  template <bool kVector>
  DG_COLLECTIVE static void store(float* p, int64_t left, Four v) {
    if constexpr (kVector) {
      *reinterpret_cast<float4*>(p) = {v.x, v.y, v.z, v.w};
    } else {
      if (left > 0) p[0] = v.x;
      if (left > 1) p[1] = v.y;
      if (left > 2) p[2] = v.z;
      if (left > 3) p[3] = v.w;
    }
  }

  // This GPU's own memory, which no other touches during the collective.
  template <bool kVector>
  DG_COLLECTIVE static Four own(const float* p, int64_t left) {
    const float4 v = load4<kVector>(p, left);
    return {v.x, v.y, v.z, v.w};
  }

  // Slots. Each of the four numbers is an access of its own as far as the protocol goes.
  DG_COLLECTIVE static void push(float* p, Four v) {
    asm volatile("st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
  }
  DG_COLLECTIVE static Four poll(const float* p) { return load<true>(p, 4); }
  DG_COLLECTIVE static bool empty(float v) { return __float_as_uint(v) == kEmpty; }
  DG_COLLECTIVE static float sent(float v) { return empty(v) ? __uint_as_float(kSentInstead) : v; }
  DG_COLLECTIVE static Four nothing() {
    const float v = __uint_as_float(kEmpty);
    return {v, v, v, v};
  }

  // As rms_norm_kernel (rows.cu): a row has the same bits, however many GPUs and blocks made it.
  DG_COLLECTIVE static float add_squares(float sum, Four v) { return dg::cuda::add_squares(sum, {v.x, v.y, v.z, v.w}); }
  DG_COLLECTIVE static float inverse_root(float squares, int dim, float eps) { return dg::cuda::inverse_root(squares, dim, eps); }

  // Over the threads of all blocks of a row: the sums of all warps go to every block, in one barrier. The two halves of `sums` take
  // turns: who writes a half again knows by the barrier between that the others had read it.
  DG_COLLECTIVE float row_sum(float v) {
    float* const at = sums[rows_done++ % 2];
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    v = warp_sum(v);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (parts > 1) {
      auto cluster = cooperative_groups::this_cluster();
      const int of_row = static_cast<int>(cluster.block_rank()) * (threads() / 32) + warp;
      if (lane < parts && of_row < row_warps) *cluster.map_shared_rank(at + of_row, lane) = v;
      cluster.sync();
      return warp_sum(lane < row_warps ? at[lane] : 0.0f);
    }
#endif
    if (lane == 0) at[warp] = v;
    __syncthreads();
    return warp_sum(lane < row_warps ? at[lane] : 0.0f);
  }
};

template <int kRanks, bool kVector>
__global__ void __launch_bounds__(kThreads) push_kernel(const __grid_constant__ CollectiveArgs c, const __grid_constant__ ReduceArgs a) {
  Gpu gpu;
  reduce_push<Gpu, kRanks, kVector>(gpu, c, a);
}

template <int kRanks, bool kVector>
__global__ void __launch_bounds__(kThreads)
    one_shot_kernel(const __grid_constant__ CollectiveArgs c, const __grid_constant__ ReduceArgs a) {
  Gpu gpu;
  reduce_one_shot<Gpu, kRanks, kVector>(gpu, c, a);
}

template <int kRanks>
__global__ void __launch_bounds__(kThreads)
    two_shot_kernel(const __grid_constant__ CollectiveArgs c, const __grid_constant__ ReduceArgs a) {
  Gpu gpu;
  reduce_two_shot<Gpu, kRanks, 8 / kRanks>(gpu, c, a);
}

template <int kRanks, int kKept>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ CollectiveArgs c, const __grid_constant__ ReduceNormArgs a) {
  __shared__ float sums[2][32];
  Gpu gpu{.sums = sums, .parts = a.parts, .row_warps = a.across / 32};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (a.parts > 1) cooperative_groups::this_cluster().sync();  // all blocks of the row run: their shared memory may be written
#endif
  reduce_norm<Gpu, kRanks, kKept>(gpu, c, a);
}

// call(std::integral_constant<int, N>), with N the smallest of 2, 4 and 8 that does.
template <class F>
void for_ranks(int ranks, F call) {
  if (ranks <= 2) call(std::integral_constant<int, 2>());
  else if (ranks <= 4) call(std::integral_constant<int, 4>());
  else call(std::integral_constant<int, 8>());
}

template <int kRanks>
void norm(const CollectiveArgs& c, const ReduceNormArgs& a, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(std::min<int64_t>(a.rows, kMostCollectiveBlocks / a.parts));
  const auto parts = static_cast<unsigned>(a.parts);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {parts, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(rows * parts), config.stream = stream;
  config.blockDim = dim3(static_cast<unsigned>((a.across / 32 + a.parts - 1) / a.parts * 32));
  const bool plain = std::exchange(next_launch_is_plain, false);
  config.attrs = plain ? attributes + 1 : attributes, config.numAttrs = (parts > 1 ? 2 : 1) - plain;
  const int kept = (a.groups + a.across - 1) / a.across;
  const auto kernel = kept <= 1 ? norm_kernel<kRanks, 1> : kept <= 2 ? norm_kernel<kRanks, 2> : norm_kernel<kRanks, 4>;
  check(cudaLaunchKernelEx(&config, kernel, c, a), "all_reduce with norm");
}

dim3 grid_of(int64_t elements) {
  const int64_t blocks = (elements / 4 + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMostCollectiveBlocks)));
}

}  // namespace

void launch_reduce_push(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream) {
  const int64_t groups = (a.elements + 3) / 4;
  const int64_t each = (groups + kMostCollectiveBlocks - 1) / kMostCollectiveBlocks;  // threads of a full grid
  const int64_t threads = std::clamp<int64_t>((each + kFewThreads - 1) / kFewThreads * kFewThreads, kFewThreads, kThreads);
  const auto grid = static_cast<unsigned>(std::clamp<int64_t>((groups + threads - 1) / threads, 1, kMostCollectiveBlocks));
  const bool vector = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.elements % 4 == 0;
  for_ranks(c.ranks, [&](auto n) {
    launch_dependent(vector ? push_kernel<n, true> : push_kernel<n, false>, grid, static_cast<unsigned>(threads), 0, stream, c, a);
  });
}

void launch_reduce_one_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream) {
  const bool vector = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.elements % 4 == 0;
  for_ranks(c.ranks, [&](auto n) {
    launch_dependent(vector ? one_shot_kernel<n, true> : one_shot_kernel<n, false>, grid_of(a.elements), kThreads, 0, stream, c, a);
  });
}

void launch_reduce_two_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream) {
  const dim3 grid = grid_of((a.elements + c.ranks - 1) / c.ranks);
  for_ranks(c.ranks, [&](auto n) { launch_dependent(two_shot_kernel<n>, grid, kThreads, 0, stream, c, a); });
}

bool divide_reduce_norm(ReduceNormArgs& a, int ranks, bool clusters) {
  a.across = norm_threads(int64_t{4} * a.groups);
  // A long row takes as many blocks as have its threads. Where there are few rows, a row is spread further, over several
  // multiprocessors, and over more of them where more ranks send to it: a single one would be long at moving its bytes.
  const int least = (a.across + kThreads - 1) / kThreads, most = ranks > 2 ? kMostParts : 4;
  a.parts = 1;
  while (clusters && (a.parts < least || (a.parts < most && a.parts * 32 < a.across && a.rows * a.parts * 2 <= kMostCollectiveBlocks)))
    a.parts *= 2;
  return a.parts >= least && a.groups <= 4 * a.across;
}

void launch_reduce_norm(const CollectiveArgs& c, const ReduceNormArgs& a, cudaStream_t stream) {
  for_ranks(c.ranks, [&](auto n) { norm<n>(c, a, stream); });
}

}  // namespace dg::cuda
