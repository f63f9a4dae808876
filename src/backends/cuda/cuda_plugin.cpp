#include "backends/cuda/cuda_backend.h"

extern "C" __attribute__((visibility("default"))) const dg::BackendPlugin dougong_backend_plugin;
const dg::BackendPlugin dougong_backend_plugin{.interface = DG_PLUGIN_INTERFACE, .create = dg::cuda::CudaBackend::create};
