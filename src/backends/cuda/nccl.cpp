#include "backends/cuda/nccl.h"

#include <dlfcn.h>
#include <fmt/core.h>
#if __has_include(<nccl.h>)
#include <nccl.h>
#define DG_HAVE_NCCL 1
#endif

namespace dg::cuda {

#ifdef DG_HAVE_NCCL

struct Nccl::Library {
  decltype(&ncclGetUniqueId) unique_id = nullptr;
  decltype(&ncclCommInitRank) init = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  ncclComm_t comm = nullptr;

  bool load() {
    void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);  // never closed: it has threads
    if (!library) return false;
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    return find(unique_id, "ncclGetUniqueId") && find(init, "ncclCommInitRank") && find(abort, "ncclCommAbort") &&
           find(all_reduce, "ncclAllReduce") && find(error_string, "ncclGetErrorString");
  }
};

Result<std::unique_ptr<Nccl>> Nccl::create(RankGroup& group, int rank) {
  auto library = std::make_unique<Library>();
  // All ranks go through both exchanges, whatever happens to one: nobody waits in vain.
  const bool loaded = library->load();
  ncclUniqueId id{};
  const bool first = loaded && (rank != 0 || library->unique_id(&id) == ncclSuccess);
  DG_ASSIGN(const std::vector<void*> ids, group.exchange(rank, first ? &id : nullptr));
  bool all = true;
  for (void* i : ids) all = all && i;
  if (all) id = *static_cast<const ncclUniqueId*>(ids[0]);
  DG_TRY(group.exchange(rank, nullptr));  // until all have copied it
  if (!all) return resource_error("libnccl.so.2 is not there or does not start");
  if (const ncclResult_t status = library->init(&library->comm, group.size(), id, rank); status != ncclSuccess)
    return resource_error(fmt::format("NCCL: {}", library->error_string(status)));
  return std::unique_ptr<Nccl>(new Nccl(std::move(library)));
}

Nccl::Nccl(std::unique_ptr<Library> library) : library_(std::move(library)) {}

Nccl::~Nccl() {
  if (library_->comm) library_->abort(library_->comm);  // unlike ncclCommDestroy, waits for no other rank
}

bool Nccl::all_reduce(float* x, int64_t elements, cudaStream_t stream) {
  return library_->all_reduce(x, x, static_cast<size_t>(elements), ncclFloat32, ncclSum, library_->comm, stream) == ncclSuccess;
}

#else

struct Nccl::Library {};
Result<std::unique_ptr<Nccl>> Nccl::create(RankGroup&, int) { return resource_error("built without nccl.h"); }
Nccl::Nccl(std::unique_ptr<Library>) {}
Nccl::~Nccl() = default;
bool Nccl::all_reduce(float*, int64_t, cudaStream_t) { return false; }

#endif

}  // namespace dg::cuda
