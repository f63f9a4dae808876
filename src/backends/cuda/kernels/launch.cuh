// Programmatic dependent launch: a kernel's blocks may start while the kernel before it on the stream still runs, so that its
// launch, its prologue and loads of weights hide behind the other's end. Also inside captured graphs.
//
// Rules. A kernel started by launch_dependent() calls wait_for_previous() in every thread before it reads anything that another kernel
// wrote or writes anything at all; before that it may only touch registers, shared memory and weights (which no kernel writes; not those
// decoded into a workspace). Everything issued earlier is then complete and visible. A kernel that calls start_next() lets the next
// one's blocks start as its own leave room; without the call that happens when its blocks end. Kernels launched with <<<>>> wait for all.
// So does the next one after launch_next_plainly(): the first behind a fork or a join of streams.
// Directly behind a kernel that calls start_next() only after its wait, everything issued before that kernel is complete as well: it may be
// read without waiting, past L1 (__ldcg): grouped_kernel does so.
#pragma once
#include <cuda_runtime.h>

namespace dg::cuda {

void check(cudaError_t status, const char* what);  // cuda_backend.h

__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline thread_local bool next_launch_is_plain = false;
inline void launch_next_plainly() { next_launch_is_plain = true; }

template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                      const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = next_launch_is_plain ? 0 : 1;
  next_launch_is_plain = false;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a kernel launch");
}

}  // namespace dg::cuda
