#include "backends/cuda/collectives.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "backends/cuda/cuda_backend.h"
#include "base/log.h"

namespace dg::cuda {
namespace {

// Of a half of the buffer: the largest message in one shot, 146 rows of 7168.
constexpr int64_t kHalfElements = int64_t{1} << 20;

// Of a slot: the largest message that is pushed, 146 rows of 7168 for two ranks. All slots of a rank: 16 MiB.
int64_t slot_elements(int ranks) { return (int64_t{1} << 21) / (ranks <= 2 ? 2 : ranks <= 4 ? 4 : 8); }

// Elements up to which all_reduce pushes; two shot takes the rest. Measured (docs/cuda.md): on two H200 push is never slower; on four 6.3
// us against 8.0 for 16 rows of 7168, 19.9 against 14.2 for 64. Eight ranks are computed: where the bytes that push sends beyond two shot's
// take the 4.5 us that it saves, at 450 GB/s.
int64_t push_elements(int ranks) { return ranks <= 2 ? slot_elements(ranks) : ranks <= 4 ? int64_t{1} << 18 : 3 * (int64_t{1} << 15); }

// The same of add_rms_norm, which also saves a kernel and its way through the rows: on four 8.8 us against 12.7 for 16 rows, 21.2 against
// 19.0 for 64.
int64_t norm_elements(int ranks) { return ranks <= 2 ? slot_elements(ranks) : ranks <= 4 ? 3 * (int64_t{1} << 17) : int64_t{1} << 17; }

// From how many elements NCCL would be taken. On two H200 it is always slower; on four it is faster by 6 % from 1024 rows of 7168 on (156
// us against 166) and by 14 % from 4096, some 2 % of a prefill, which is not worth its start and its memory.
constexpr int64_t kNcclElements = INT64_MAX;

const char* collective_name(Collective what) {
  switch (what) {
    case Collective::kOneShot: return "all_reduce (one shot)";
    case Collective::kTwoShot: return "all_reduce (two shot)";
    case Collective::kPush: return "all_reduce (push)";
    case Collective::kNorm: return "add_rms_norm";
  }
  return "a collective";
}

Error memory_error(const char* what, size_t bytes, cudaError_t status) {
  cudaGetLastError();
  return resource_error(fmt::format("{} of {} KiB: {}", what, bytes >> 10, cudaGetErrorString(status)));
}

}  // namespace

Result<std::unique_ptr<Collectives>> Collectives::create(RankGroup& group, int rank, int device, bool clusters) {
  auto made = std::unique_ptr<Collectives>(new Collectives(group, rank, device, clusters));
  if (Result<void> connected = made->connect(); !connected.ok()) {
    group.fail(rank, connected.error());
    return connected.error();
  }
  return made;
}

Collectives::Collectives(RankGroup& group, int rank, int device, bool clusters) : group_(group), device_(device), clusters_(clusters) {
  args_.rank = rank;
  args_.ranks = group.size();
}

Collectives::~Collectives() {
  nccl_.reset();
  for (void* memory : {buffer_, slots_, static_cast<void*>(flags_)})
    if (memory) peers_ ? cudaFree(memory) : cudaFreeHost(memory);
  if (args_.state) cudaFree(args_.state);
  if (args_.report) cudaFreeHost(args_.report);
}

// Whether every rank's GPU reads the memory of all others; enables it.
Result<void> Collectives::agree_on_peers() {
  DG_ASSIGN(const std::vector<void*> devices, group_.exchange(args_.rank, reinterpret_cast<void*>(static_cast<intptr_t>(device_) + 1)));
  std::string refused;
  for (void* d : devices) {
    devices_.push_back(static_cast<int>(reinterpret_cast<intptr_t>(d)) - 1);
    const int peer = devices_.back();
    if (peer == device_) continue;  // ranks may share a GPU: for tests
    int can = 0;
    cudaError_t status = cudaDeviceCanAccessPeer(&can, device_, peer);
    if (status == cudaSuccess && can) status = cudaDeviceEnablePeerAccess(peer, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) status = cudaSuccess;
    cudaGetLastError();
    if (status != cudaSuccess || !can) refused += fmt::format("{}{}", refused.empty() ? "" : ", ", peer);
  }
  if (!refused.empty())
    log_warning(
        fmt::format("GPU {} cannot read the memory of GPU {} (nvidia-smi topo -p2p r): sums of several GPUs go through host memory, "
                    "which is slow",
                    device_, refused));
  static const char kNo = 0;
  DG_ASSIGN(const std::vector<void*> answers, group_.exchange(args_.rank, refused.empty() ? nullptr : const_cast<char*>(&kNo)));
  for (void* no : answers) peers_ = peers_ && !no;
  return {};
}

Result<void> Collectives::connect() {
  const int ranks = args_.ranks;
  if (ranks > kMostRanks) return input_error(fmt::format("{} GPUs: at most {} compute one model together", ranks, kMostRanks));
  DG_TRY(agree_on_peers());
  const size_t bytes = 2 * kHalfElements * sizeof(float);
  args_.half_elements = kHalfElements;
  args_.slot_elements = peers_ ? slot_elements(ranks) : 0;
  const size_t slot_bytes = 2 * static_cast<size_t>(ranks * args_.slot_elements) * sizeof(float);
  auto shared = [&](void** at, size_t n, const char* what) -> Result<void> {
    const cudaError_t status = peers_ ? cudaMalloc(at, n) : cudaHostAlloc(at, n, cudaHostAllocMapped | cudaHostAllocPortable);
    if (status != cudaSuccess) return memory_error(what, n, status);
    return {};
  };
  DG_TRY(shared(&buffer_, bytes, "the buffer of collectives"));
  DG_TRY(shared(reinterpret_cast<void**>(&flags_), sizeof(SharedFlags), "the flags of collectives"));
  if (slot_bytes > 0) DG_TRY(shared(&slots_, slot_bytes, "the slots of collectives"));
  if (const auto status = cudaMalloc(&args_.state, sizeof(CollectiveState)); status != cudaSuccess)
    return memory_error("the state of collectives", sizeof(CollectiveState), status);
  if (const auto status = cudaHostAlloc(&args_.report, sizeof(CollectiveReport), cudaHostAllocMapped | cudaHostAllocPortable);
      status != cudaSuccess)
    return memory_error("the report of collectives", sizeof(CollectiveReport), status);
  std::memset(args_.report, 0, sizeof(CollectiveReport));
  DG_CUDA(cudaMemset(flags_, 0, sizeof(SharedFlags)));
  DG_CUDA(cudaMemset(args_.state, 0, sizeof(CollectiveState)));
  DG_CUDA(cudaMemset(buffer_, 0, bytes));
  static_assert(kEmpty == 0xffffffffu);
  if (slots_) DG_CUDA(cudaMemset(slots_, 0xff, slot_bytes));
  DG_CUDA(cudaDeviceSynchronize());

  struct Places {
    void *buffer, *slots;
    SharedFlags* flags;
  } mine{buffer_, slots_, flags_};
  DG_ASSIGN(const std::vector<void*> places, group_.exchange(args_.rank, &mine));
  for (int r = 0; r < ranks; r++) {
    const auto& theirs = *static_cast<const Places*>(places[static_cast<size_t>(r)]);
    args_.buffer[r] = static_cast<float*>(theirs.buffer);
    args_.slots[r] = static_cast<float*>(theirs.slots);
    args_.flags[r] = theirs.flags;
  }
  DG_TRY(group_.exchange(args_.rank, nullptr));  // `mine` is read
  args_.limit_ns = std::chrono::nanoseconds(group_.timeout()).count();

  // DOUGONG_CUDA_COLLECTIVE=ll|one|two|nccl (ll: push): one algorithm wherever it can be used, for measurements. add_rms_norm is one
  // kernel only with push.
  const char* text = std::getenv("DOUGONG_CUDA_COLLECTIVE");
  const std::string_view only = text ? text : "";
  const bool forced = only == "ll" || only == "one" || only == "two" || only == "nccl";
  push_elements_ = only == "ll" ? args_.slot_elements : forced || !peers_ ? 0 : push_elements(ranks);
  norm_elements_ = only == "ll" ? args_.slot_elements : forced || !peers_ ? 0 : norm_elements(ranks);
  one_shot_elements_ = !peers_ || only == "one" ? kHalfElements : 0;
  nccl_elements_ = only == "nccl" ? 0 : forced ? INT64_MAX : kNcclElements;
  if (nccl_elements_ < INT64_MAX) {
    Result<std::unique_ptr<Nccl>> nccl = Nccl::create(group_, args_.rank);
    if (nccl.ok()) nccl_ = *std::move(nccl);
    else log_warning(fmt::format("{}; sums of several GPUs do without it", nccl.error().message));
  }
  return {};
}

void Collectives::all_reduce(float* x, int64_t elements, cudaStream_t stream) {
  if (nccl_ && elements >= nccl_elements_) {
    if (!nccl_->all_reduce(x, elements, stream)) check(cudaErrorUnknown, "ncclAllReduce");
  } else if (elements <= push_elements_) {
    launch_reduce_push(args_, {.x = x, .elements = elements}, stream);
  } else if (peers_ && elements > one_shot_elements_) {
    launch_reduce_two_shot(args_, {.x = x, .elements = elements}, stream);
  } else {
    for (int64_t at = 0; at < elements; at += kHalfElements)
      launch_reduce_one_shot(args_, {.x = x + at, .elements = std::min(kHalfElements, elements - at)}, stream);
  }
}

bool Collectives::add_rms_norm(ReduceNormArgs args, cudaStream_t stream) {
  if (args.rows * args.groups * 4 > norm_elements_ || !divide_reduce_norm(args, args_.ranks, clusters_)) return false;
  launch_reduce_norm(args_, args, stream);
  return true;
}

std::optional<std::string> Collectives::failure() const {
  const CollectiveReport& report = *args_.report;
  if (__atomic_load_n(&report.code, __ATOMIC_ACQUIRE) != 0)
    return fmt::format("rank {} (GPU {}) waited {:.3g} s for rank {} (GPU {}) in {} of {} numbers, collective {}", args_.rank, device_,
                       static_cast<double>(args_.limit_ns) * 1e-9, report.waited_for, devices_[report.waited_for],
                       collective_name(report.what), report.elements, report.turn);
  if (__atomic_load_n(&report.aborted, __ATOMIC_ACQUIRE) != 0)
    return fmt::format("rank {} (GPU {}) stopped because another rank failed", args_.rank, device_);
  return {};
}

void Collectives::give_up() { __atomic_store_n(&args_.report->give_up, 1u, __ATOMIC_RELEASE); }

}  // namespace dg::cuda
