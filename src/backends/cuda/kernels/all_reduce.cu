// The GPU's side of collective.h. Bytes over NVLink for x of S bytes and n ranks, in each direction: one shot (n - 1) S, two shot
// 2 (n - 1) / n S; small messages are bound by latency: a kernel, a flag on its way (about 1 us) and a read (about 1 us).
// What other GPUs write is read with ld.relaxed.sys, which passes L1; flags with acquire and release of system scope.
#include <cooperative_groups.h>

#include <algorithm>

#include "backends/cuda/kernels/all_reduce.h"
#include "backends/cuda/kernels/launch.cuh"

namespace dg::cuda {
namespace {

constexpr int kThreads = 512, kKept = 4, kMostParts = 4;

struct Gpu {
  float (*sums)[kMostParts + kThreads / 32] = nullptr;  // shared memory, only of row_sum: [row % 2][part, warp]
  int parts = 1;
  int rows_done = 0;

  DG_COLLECTIVE int thread() const { return static_cast<int>(threadIdx.x); }
  DG_COLLECTIVE int threads() const { return kThreads; }
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
  DG_COLLECTIVE static bool last(uint32_t* p, uint32_t count) {
    __threadfence();
    const bool is_last = atomicAdd(p, 1u) == count - 1;
    __threadfence();
    return is_last;
  }
  DG_COLLECTIVE static void pause() {}
  DG_COLLECTIVE static int64_t now_ns() {
    int64_t v;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v));
    return v;
  }
  DG_COLLECTIVE static float root(float v) { return sqrtf(v); }

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

  // Over the threads of all blocks of a row, in a fixed order. The two halves of `sums` take turns, so one barrier a row is enough
  // between blocks.
  DG_COLLECTIVE float row_sum(float v) {
    float* const at = sums[rows_done++ % 2];
    float* const warps = at + kMostParts;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; w++) v += warps[w];
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (parts > 1) {
      auto cluster = cooperative_groups::this_cluster();
      const auto part = static_cast<int>(cluster.block_rank());
      if (static_cast<int>(threadIdx.x) < parts) cluster.map_shared_rank(at, threadIdx.x)[part] = v;
      cluster.sync();
      v = 0;
      for (int p = 0; p < parts; p++) v += at[p];
    }
#endif
    return v;
  }
};

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

template <int kRanks>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ CollectiveArgs c, const __grid_constant__ ReduceNormArgs a) {
  __shared__ float sums[2][kMostParts + kThreads / 32];
  Gpu gpu{.sums = sums, .parts = a.parts};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (a.parts > 1) cooperative_groups::this_cluster().sync();  // all blocks of the row run: their shared memory may be written
#endif
  reduce_norm<Gpu, kRanks, kKept>(gpu, c, a);
}

template <bool kVector>
void one_shot(const CollectiveArgs& c, const ReduceArgs& a, dim3 grid, cudaStream_t stream) {
  if (c.ranks <= 2) launch_dependent(one_shot_kernel<2, kVector>, grid, kThreads, 0, stream, c, a);
  else if (c.ranks <= 4) launch_dependent(one_shot_kernel<4, kVector>, grid, kThreads, 0, stream, c, a);
  else launch_dependent(one_shot_kernel<8, kVector>, grid, kThreads, 0, stream, c, a);
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
  config.gridDim = dim3(rows * parts), config.blockDim = dim3(kThreads), config.stream = stream;
  config.attrs = attributes, config.numAttrs = parts > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, norm_kernel<kRanks>, c, a), "all_reduce with norm");
}

dim3 grid_of(int64_t elements) {
  const int64_t blocks = (elements / 4 + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMostCollectiveBlocks)));
}

}  // namespace

void launch_reduce_one_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream) {
  const dim3 grid = grid_of(a.elements);
  if (reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.elements % 4 == 0) one_shot<true>(c, a, grid, stream);
  else one_shot<false>(c, a, grid, stream);
}

void launch_reduce_two_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream) {
  const dim3 grid = grid_of((a.elements + c.ranks - 1) / c.ranks);
  if (c.ranks <= 2) launch_dependent(two_shot_kernel<2>, grid, kThreads, 0, stream, c, a);
  else if (c.ranks <= 4) launch_dependent(two_shot_kernel<4>, grid, kThreads, 0, stream, c, a);
  else launch_dependent(two_shot_kernel<8>, grid, kThreads, 0, stream, c, a);
}

int reduce_norm_parts(int64_t groups, int ranks, bool clusters) {
  // With many ranks one multiprocessor would wait for (ranks - 1) rows through its own port.
  const int parts = clusters && (ranks > 2 || groups > kThreads * kKept) ? kMostParts : 1;
  return groups <= static_cast<int64_t>(parts) * kThreads * kKept ? parts : 0;
}

void launch_reduce_norm(const CollectiveArgs& c, const ReduceNormArgs& a, cudaStream_t stream) {
  if (c.ranks <= 2) norm<2>(c, a, stream);
  else if (c.ranks <= 4) norm<4>(c, a, stream);
  else norm<8>(c, a, stream);
}

}  // namespace dg::cuda
