// Construction, memory, products with weights and the ops over single rows.
#include "backends/cpu/cpu.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/host_all_reduce.h"
#include "backends/cpu/isa.h"
#include "device/cache_format.h"

namespace dg {
namespace {

constexpr int64_t kFirstScratchFloats = int64_t{1} << 18;  // 1 MiB per worker

struct CpuMemory : DeviceMemory {
  explicit CpuMemory(HugeMemory m) : memory(std::move(m)) {
    data_ = memory.data();
    bytes_ = memory.bytes();
  }
  HugeMemory memory;
};

Element element(const Tensor& t) {
  switch (t.dtype) {
    case Dtype::kF32: return Element::kF32;
    case Dtype::kBf16: return Element::kBf16;
    case Dtype::kF16: return Element::kF16;
    default: CHECK(false) << "element type " << dtype_name(t.dtype); return Element::kF32;
  }
}

// Address of row i, j of a tensor whatever its type.
std::byte* row_address(const Tensor& t, int64_t offset) {
  return static_cast<std::byte*>(t.data) + offset * static_cast<int64_t>(dtype_bytes(t.dtype));
}

bool same_rows(const Tensor& a, const Tensor& b) { return a.rank == b.rank && a.shape == b.shape; }
bool dense_rows(const Tensor& t) { return t.cols() <= 1 || t.stride[static_cast<size_t>(t.rank - 1)] == 1; }

}  // namespace

std::vector<std::string> usable_cpu_isas() { return usable_isas(); }

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  DG_ASSIGN(const KernelTable* kernels, find_kernels(options.isa));
  if (options.threads < 0 || options.threads > 4096)
    return input_error(fmt::format("--threads {}: expected 1 to 4096, or 0 for all physical cores", options.threads));
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(options, kernels, Topology::load()));
}

CpuBackend::CpuBackend(const CpuOptions& options, const KernelTable* kernels, Topology topology)
    : kernels_(kernels),
      topology_(std::move(topology)),
      pool_(options.threads, topology_, options.pin),
      batch_invariant_(options.batch_invariant),
      group_(options.group),
      rank_(options.rank) {
  reserve_scratch(kFirstScratchFloats);
}

std::string CpuBackend::description() const {
  return fmt::format("cpu: {}, {} thread{}, {}", kernels_->isa, pool_.threads(), pool_.threads() == 1 ? "" : "s", topology_.summary());
}

Result<std::unique_ptr<DeviceMemory>> CpuBackend::allocate(size_t bytes, const char* purpose) {
  DG_ASSIGN(HugeMemory memory, HugeMemory::allocate(bytes, purpose));
  return std::unique_ptr<DeviceMemory>(std::make_unique<CpuMemory>(std::move(memory)));
}

Matrix CpuBackend::matrix(const Weight& weight) const {
  for (int i = 0; i < kernels_->decoder_count; i++)
    if (std::strcmp(kernels_->decoders[i].format, weight.format->name) == 0) return {&weight, kernels_->decoders[i].decode};
  return {&weight, weight.format->decode};  // formats that only occur unprepared in small matrices
}

void CpuBackend::reserve_scratch(int64_t floats) {
  if (!scratch_.empty() && static_cast<size_t>(floats) * sizeof(float) <= scratch_[0].bytes()) return;
  scratch_.clear();
  for (int i = 0; i < pool_.threads(); i++) {
    auto memory = HugeMemory::allocate(static_cast<size_t>(floats) * sizeof(float), "scratch of the CPU kernels");
    CHECK(memory.ok()) << memory.error().message;
    scratch_.push_back(std::move(memory).value());
  }
}

void CpuBackend::matmul(const MatmulArgs& args) {
  CHECK(!args.w.weight->prepared && !args.w.weight->columns);
  const int64_t in = args.w.weight->in, out = args.w.weight->out;
  reserve_scratch(matmul_scratch_floats(args.tokens, in, args.gate.weight != nullptr));
  const int64_t blocks = (out + kMatmulRows - 1) / kMatmulRows;
  // Pieces of at least 64k multiply-adds (some 10 us) and at most an eighth of a thread's share.
  const int64_t work = std::max<int64_t>(1, kMatmulRows * in * args.tokens);
  const int64_t grain = std::max<int64_t>({1, 65536 / work, blocks / (8 * pool_.threads())});
  pool_.parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int worker) {
    MatmulArgs piece = args;
    piece.scratch = scratch(worker);
    kernels_->matmul(piece, begin * kMatmulRows, std::min(out, end * kMatmulRows));
  });
}

void CpuBackend::linear(const Linear& op) {
  CHECK(op.x.cols() == op.weight.in && op.out.cols() == op.weight.out && op.out.rows() == op.x.rows());
  CHECK(dense_rows(op.x) && dense_rows(op.out) && op.x.rank == 2 && op.out.rank == 2);
  CHECK(!op.bias.valid() || (op.bias.cols() == op.weight.out && dense_rows(op.bias)));
  if (op.weight.prepared) return product(op.out, op.x, op.weight, nullptr, op.bias.valid() ? op.bias.f32() : nullptr);
  MatmulArgs args{};
  args.w = matrix(op.weight);
  args.x = op.x.f32(), args.x_stride = op.x.stride[0];
  args.out = op.out.f32(), args.out_stride = op.out.stride[0];
  args.tokens = op.x.rows();
  args.bias = op.bias.valid() ? op.bias.f32() : nullptr;
  matmul(args);
}

void CpuBackend::linear_glu(const LinearGlu& op) {
  CHECK(op.x.cols() == op.up.in && op.out.cols() == op.up.out && op.out.rows() == op.x.rows());
  CHECK(op.gate.in == op.up.in && op.gate.out == op.up.out);
  CHECK(dense_rows(op.x) && dense_rows(op.out) && op.x.rank == 2 && op.out.rank == 2);
  if (op.up.prepared && op.gate.prepared && panel_kind(*op.up.format) == panel_kind(*op.gate.format) &&
      op.up.format->table4 == op.gate.format->table4 && same_columns(op.up, op.gate))
    return product(op.out, op.x, op.up, &op.gate, nullptr);
  if (op.up.prepared || op.gate.prepared) return Backend::linear_glu(op);  // gate and up in different formats or orders of columns
  MatmulArgs args{};
  args.w = matrix(op.up), args.gate = matrix(op.gate);
  args.x = op.x.f32(), args.x_stride = op.x.stride[0];
  args.out = op.out.f32(), args.out_stride = op.out.stride[0];
  args.tokens = op.x.rows();
  matmul(args);
}

void CpuBackend::embed(const Embed& op) {
  CHECK(op.out.cols() == op.table.in && op.out.rows() == op.ids.rows() && dense_rows(op.out));
  if (op.table.prepared) {  // tied to the head
    for_rows(op.out.rows(), op.table.in * 8, [&](int64_t t) {
      const int32_t id = *op.ids.i32(t);
      CHECK(id >= 0 && id < op.table.out) << "token id " << id << ", vocabulary of " << op.table.out;
      panel_decode(op.table, id, 0, op.table.in, op.out.f32(t));
    });
    return;
  }
  const Matrix table = matrix(op.table);
  for_rows(op.out.rows(), op.table.in, [&](int64_t t) {
    const int32_t id = *op.ids.i32(t);
    CHECK(id >= 0 && id < op.table.out) << "token id " << id << ", vocabulary of " << op.table.out;
    table.decode(*table.weight, id, 0, op.table.in, op.out.f32(t));
  });
}

void CpuBackend::rms_norm(const RmsNorm& op) {
  CHECK(same_rows(op.x, op.out) && op.x.rank >= 2 && op.x.rank <= 3 && op.weight.cols() == op.x.cols());
  CHECK(dense_rows(op.x) && dense_rows(op.out) && dense_rows(op.weight));
  const int64_t heads = op.x.rank == 3 ? op.x.dim(1) : 1, dim = op.x.cols();
  for_rows(op.x.rows(), heads * dim, [&](int64_t t) {
    for (int64_t h = 0; h < heads; h++)
      kernels_->rms_norm(op.x.f32(t, heads == 1 ? 0 : h), op.weight.f32(), op.eps, dim, op.out.f32(t, heads == 1 ? 0 : h));
  });
}

void CpuBackend::all_reduce(const AllReduce& op) { host_all_reduce(group_, rank_, op.x); }

void CpuBackend::add_rms_norm(const AddRmsNorm& op) {
  CHECK(same_rows(op.residual, op.delta) && same_rows(op.residual, op.out) && op.out.rank == 2 && op.weight.cols() == op.out.cols());
  CHECK(dense_rows(op.residual) && dense_rows(op.delta) && dense_rows(op.out) && dense_rows(op.weight));
  if (op.partial) host_all_reduce(group_, rank_, op.delta);
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t t) {
    kernels_->add(op.residual.f32(t), op.delta.f32(t), op.out.cols(), op.residual.f32(t));
    kernels_->rms_norm(op.residual.f32(t), op.weight.f32(), op.eps, op.out.cols(), op.out.f32(t));
  });
}

void CpuBackend::update_rotary(const Tensor& positions, const Tensor& inv_freq, float magnitude) {
  CHECK(dense_rows(positions) && dense_rows(inv_freq));
  const auto tokens = static_cast<size_t>(positions.rows()), half = static_cast<size_t>(inv_freq.cols());
  RotaryTable& r = rotary_;
  if (r.magnitude == magnitude && r.positions.size() == tokens && r.inv_freq.size() == half &&
      std::memcmp(r.positions.data(), positions.data, tokens * 4) == 0 && std::memcmp(r.inv_freq.data(), inv_freq.data, half * 4) == 0)
    return;
  r.positions.assign(positions.i32(), positions.i32() + tokens);
  r.inv_freq.assign(inv_freq.f32(), inv_freq.f32() + half);
  r.magnitude = magnitude;
  r.cosine.resize(tokens * half);
  r.sine.resize(tokens * half);
  for_rows(static_cast<int64_t>(tokens), static_cast<int64_t>(half) * 32, [&](int64_t t) {
    const auto begin = static_cast<size_t>(t) * half;
    for (size_t i = 0; i < half; i++) {
      // The product in float, as the checkpoints were trained; cos and sin of that float for positions up to millions.
      const float angle = static_cast<float>(r.positions[static_cast<size_t>(t)]) * r.inv_freq[i];
      r.cosine[begin + i] = std::cos(angle) * magnitude;
      r.sine[begin + i] = std::sin(angle) * magnitude;
    }
  });
}

void CpuBackend::rope(const Rope& op) {
  head_norm_rope({.x = op.x,
                  .weight = {},
                  .eps = 0,
                  .positions = op.positions,
                  .inv_freq = op.inv_freq,
                  .interleaved = op.interleaved,
                  .magnitude = op.magnitude});
}

void CpuBackend::head_norm_rope(const HeadNormRope& op) {
  const int64_t dim = op.x.cols(), heads = op.x.dim(1), half = dim / 2;
  CHECK(op.x.rank == 3 && dim % 2 == 0 && op.inv_freq.cols() == half && op.positions.rows() == op.x.rows() && dense_rows(op.x));
  CHECK(!op.weight.valid() || (op.weight.cols() == dim && dense_rows(op.weight)));
  update_rotary(op.positions, op.inv_freq, op.magnitude);
  for_rows(op.x.rows(), heads * dim, [&](int64_t t) {
    for (int64_t h = 0; h < heads; h++) {
      float* x = op.x.f32(t, h);
      if (op.weight.valid()) kernels_->rms_norm(x, op.weight.f32(), op.eps, dim, x);
      kernels_->rope(x, rotary_.cosine.data() + t * half, rotary_.sine.data() + t * half, half, op.interleaved);
    }
  });
}

void CpuBackend::act_mul(const ActMul& op) {
  CHECK(same_rows(op.out, op.gate) && same_rows(op.out, op.up) && dense_rows(op.out) && dense_rows(op.gate) && dense_rows(op.up));
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t t) { kernels_->act_mul(op.gate.f32(t), op.up.f32(t), op.out.cols(), op.out.f32(t)); });
}

void CpuBackend::add(const Add& op) {
  CHECK(same_rows(op.out, op.a) && same_rows(op.out, op.b) && dense_rows(op.out) && dense_rows(op.a) && dense_rows(op.b));
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t t) { kernels_->add(op.a.f32(t), op.b.f32(t), op.out.cols(), op.out.f32(t)); });
}

void CpuBackend::gather_rows(const GatherRows& op) {
  CHECK(op.out.cols() == op.x.cols() && op.out.rows() == op.rows.rows() && dense_rows(op.out) && dense_rows(op.x));
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t i) {
    const int32_t row = *op.rows.i32(i);
    CHECK(row >= 0 && row < op.x.rows()) << "row " << row << " of " << op.x.rows();
    std::memcpy(op.out.f32(i), op.x.f32(row), static_cast<size_t>(op.out.cols()) * sizeof(float));
  });
}

void CpuBackend::fill(const Fill& op) {
  CHECK(dense_rows(op.out));
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t t) { std::fill_n(op.out.f32(t), op.out.cols(), op.value); });
}

void CpuBackend::copy(const Copy& op) {
  CHECK(same_rows(op.out, op.x) && op.out.rank == 2 && dense_rows(op.out) && dense_rows(op.x));
  const Element from = element(op.x), to = element(op.out);
  for_rows(op.out.rows(), op.out.cols(), [&](int64_t t) {
    kernels_->convert(row_address(op.x, t * op.x.stride[0]), from, row_address(op.out, t * op.out.stride[0]), to, op.out.cols());
  });
}

void CpuBackend::kv_write(const KvWrite& op) {
  const Tensor& cache = op.cache.data;
  CHECK(op.values.cols() == op.cache.width() && op.slots.rows() == op.values.rows() && dense_rows(op.values) && dense_rows(cache));
  const CacheElement to = cache_element(op.cache);
  CHECK(cache.stride[1] * static_cast<int64_t>(dtype_bytes(cache.dtype)) >= cache_row_bytes(cache.dtype, op.cache.width()));
  const int64_t per_block = op.cache.block_tokens(), slots = cache.dim(0) * per_block;
  for_rows(op.values.rows(), op.values.cols(), [&](int64_t t) {
    const int32_t slot = *op.slots.i32(t);
    CHECK(slot >= 0 && slot < slots) << "cache slot " << slot << " of " << slots;
    const int64_t offset = slot / per_block * cache.stride[0] + slot % per_block * cache.stride[1];
    kernels_->cache_write(op.values.f32(t), op.values.cols(), to, row_address(cache, offset));
  });
}

}  // namespace dg
