// The definition of every op, written to be read: float accumulation in index order, no blocking, no threads. The op
// table (tests/ops), the `checked` backend and the golden tests compare the fast kernels with this file.
#include "backends/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backends/cpu/host_all_reduce.h"
#include "device/cache_format.h"
#include "quant/convert.h"

namespace dg {
namespace {

float load(const Tensor& t, int64_t offset) {
  switch (t.dtype) {
    case Dtype::kF32: return static_cast<const float*>(t.data)[offset];
    case Dtype::kBf16: return bf16_to_float(static_cast<const uint16_t*>(t.data)[offset]);
    case Dtype::kF16: return f16_to_float(static_cast<const uint16_t*>(t.data)[offset]);
    default: CHECK(false) << "activation dtype " << dtype_name(t.dtype); return 0;
  }
}

void store(const Tensor& t, int64_t offset, float value) {
  switch (t.dtype) {
    case Dtype::kF32: static_cast<float*>(t.data)[offset] = value; return;
    case Dtype::kBf16: static_cast<uint16_t*>(t.data)[offset] = float_to_bf16(value); return;
    case Dtype::kF16: static_cast<uint16_t*>(t.data)[offset] = float_to_f16(value); return;
    default: CHECK(false) << "activation dtype " << dtype_name(t.dtype);
  }
}

// A row of the paged cache; offset in elements of its dtype (device/cache_format.h).
void load_cache_row(const PagedCache& cache, int64_t offset, float* out) {
  const auto* row = static_cast<const std::byte*>(cache.data.data) + offset * static_cast<int64_t>(dtype_bytes(cache.data.dtype));
  for (int64_t i = 0; i < cache.width(); i++) switch (cache.data.dtype) {
      case Dtype::kF8E4m3: out[i] = e4m3_to_float(static_cast<uint8_t>(row[i])); break;
      case Dtype::kI8: out[i] = static_cast<float>(static_cast<int8_t>(row[i])) * int8_cache_scale(row, cache.width(), i); break;
      default: out[i] = load(cache.data, offset + i);
    }
}

void store_cache_row(const PagedCache& cache, int64_t offset, const float* values) {
  auto* row = static_cast<std::byte*>(cache.data.data) + offset * static_cast<int64_t>(dtype_bytes(cache.data.dtype));
  if (cache.data.dtype == Dtype::kI8) return int8_cache_encode(values, cache.width(), row);
  for (int64_t i = 0; i < cache.width(); i++) {
    if (cache.data.dtype == Dtype::kF8E4m3) row[i] = std::byte{float_to_e4m3(values[i])};
    else store(cache.data, offset + i, values[i]);
  }
}

// Row `position` of a sequence, as floats.
void load_cache_row(const PagedCache& cache, const SequenceSlice& s, int64_t position, float* out) {
  int64_t per_block = cache.block_tokens();
  load_cache_row(cache, s.blocks[position / per_block] * cache.data.stride[0] + position % per_block * cache.data.stride[1], out);
}

struct HostMemory : DeviceMemory {
  explicit HostMemory(size_t size) : storage((size + 63) / 64 * 64 + 64) {
    auto address = reinterpret_cast<uintptr_t>(storage.data());
    data_ = storage.data() + ((address + 63) / 64 * 64 - address);
    bytes_ = size;
  }
  std::vector<std::byte> storage;
};

class ReferenceBackend : public Backend {
 public:
  ReferenceBackend(RankGroup* group, int rank) : group_(group), rank_(rank) {}
  const char* name() const override { return "reference"; }
  std::string description() const override { return "reference: plain loops, 1 thread"; }
  bool supports(const Format&) const override { return true; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char*) override {
    return std::unique_ptr<DeviceMemory>(std::make_unique<HostMemory>(bytes));
  }

  void embed(const Embed& op) override {
    for (int64_t t = 0; t < op.out.rows(); t++) {
      int32_t id = *op.ids.ptr<int32_t>(t);
      CHECK(id >= 0 && id < op.table.out) << "token id " << id << ", vocabulary of " << op.table.out;
      op.table.decode(id, 0, op.table.in, op.out.f32(t));
    }
  }

  void linear(const Linear& op) override {
    CHECK(op.x.cols() == op.weight.in && op.out.cols() == op.weight.out && op.out.rows() == op.x.rows());
    std::vector<float> row(static_cast<size_t>(op.weight.in));
    for (int64_t o = 0; o < op.weight.out; o++) {
      op.weight.decode(o, 0, op.weight.in, row.data());
      for (int64_t t = 0; t < op.x.rows(); t++) {
        const float* x = op.x.f32(t);
        const int32_t* columns = op.weight.columns;
        float sum = 0;
        for (int64_t i = 0; i < op.weight.in; i++) sum += row[static_cast<size_t>(i)] * x[columns ? columns[i] : i];
        if (op.bias.valid()) sum += *op.bias.f32(o);
        *op.out.f32(t, o) = sum;
      }
    }
  }

  void all_reduce(const AllReduce& op) override { host_all_reduce(group_, rank_, op.x); }

  void rms_norm(const RmsNorm& op) override {
    int64_t heads = op.x.rank == 3 ? op.x.dim(1) : 1, dim = op.x.cols();
    for (int64_t t = 0; t < op.x.rows(); t++)
      for (int64_t h = 0; h < heads; h++) {
        const float* x = op.x.rank == 3 ? op.x.f32(t, h) : op.x.f32(t);
        float* out = op.out.rank == 3 ? op.out.f32(t, h) : op.out.f32(t);
        float sum = 0;
        for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
        float inverse = 1.0f / std::sqrt(sum / static_cast<float>(dim) + op.eps);
        for (int64_t i = 0; i < dim; i++) out[i] = x[i] * inverse * *op.weight.f32(i);
      }
  }

  void rope(const Rope& op) override {
    int64_t half = op.x.cols() / 2;
    int64_t step = op.interleaved ? 2 : 1, distance = op.interleaved ? 1 : half;
    for (int64_t t = 0; t < op.x.rows(); t++)
      for (int64_t h = 0; h < op.x.dim(1); h++)
        for (int64_t i = 0; i < half; i++) {
          float angle = static_cast<float>(*op.positions.ptr<int32_t>(t)) * *op.inv_freq.f32(i);
          float c = std::cos(angle) * op.magnitude, s = std::sin(angle) * op.magnitude;
          float* first = op.x.f32(t, h, i * step);
          float* second = first + distance;
          float a = *first, b = *second;
          *first = a * c - b * s;
          *second = b * c + a * s;
        }
  }

  void act_mul(const ActMul& op) override {
    for (int64_t t = 0; t < op.out.rows(); t++)
      for (int64_t i = 0; i < op.out.cols(); i++) {
        float g = *op.gate.f32(t, i);
        *op.out.f32(t, i) = g / (1.0f + std::exp(-g)) * *op.up.f32(t, i);
      }
  }

  void add(const Add& op) override {
    for (int64_t t = 0; t < op.out.rows(); t++)
      for (int64_t i = 0; i < op.out.cols(); i++) *op.out.f32(t, i) = *op.a.f32(t, i) + *op.b.f32(t, i);
  }

  void gather_rows(const GatherRows& op) override {
    for (int64_t i = 0; i < op.out.rows(); i++)
      std::memcpy(op.out.f32(i), op.x.f32(*op.rows.ptr<int32_t>(i)), static_cast<size_t>(op.out.cols()) * 4);
  }

  void fill(const Fill& op) override {
    for (int64_t t = 0; t < op.out.rows(); t++)
      for (int64_t i = 0; i < op.out.cols(); i++) *op.out.f32(t, i) = op.value;
  }

  void copy(const Copy& op) override {
    for (int64_t t = 0; t < op.out.rows(); t++)
      for (int64_t i = 0; i < op.out.cols(); i++)
        store(op.out, t * op.out.stride[0] + i * op.out.stride[1], load(op.x, t * op.x.stride[0] + i * op.x.stride[1]));
  }

  void kv_write(const KvWrite& op) override {
    CHECK(op.values.cols() == op.cache.width());
    int64_t per_block = op.cache.block_tokens();
    for (int64_t t = 0; t < op.values.rows(); t++) {
      int64_t slot = *op.slots.ptr<int32_t>(t);
      int64_t offset = slot / per_block * op.cache.data.stride[0] + slot % per_block * op.cache.data.stride[1];
      store_cache_row(op.cache, offset, op.values.f32(t));
    }
  }

  void attention(const Attention& op) override {
    int64_t heads = op.q.dim(1), dim = op.q.dim(2), group = heads / op.kv_heads;
    std::vector<float> scores, k, v;
    for (const SequenceSlice& s : op.sequences) {
      size_t width = static_cast<size_t>(op.k_cache.width());
      k.resize(static_cast<size_t>(s.kv_len) * width);
      v.resize(static_cast<size_t>(s.kv_len) * width);
      for (int64_t j = 0; j < s.kv_len; j++) {
        load_cache_row(op.k_cache, s, j, k.data() + static_cast<size_t>(j) * width);
        load_cache_row(op.v_cache, s, j, v.data() + static_cast<size_t>(j) * width);
      }
      for (int t = 0; t < s.q_len; t++)
        for (int64_t h = 0; h < heads; h++)
          attend(op.q.f32(s.q_begin + t, h), k.data() + h / group * dim, v.data() + h / group * dim, width, width,
                 s.kv_len - s.q_len + t + 1, dim, dim, op.scale, scores, op.out.f32(s.q_begin + t, h));
    }
  }

  void mla_attention(const MlaAttention& op) override {
    int64_t heads = op.q.dim(1), head_rows = op.nope + op.v_dim, q_dim = op.nope + op.rope;
    CHECK(!op.kv_b.columns) << "kv_b is read by rows";
    CHECK(op.kv_b.out == heads * head_rows && op.kv_b.in == op.kv_lora && op.cache.width() == op.kv_lora + op.rope);
    std::vector<float> scores, latent(static_cast<size_t>(op.cache.width())), row(static_cast<size_t>(op.kv_lora));
    for (const SequenceSlice& s : op.sequences)
      for (int64_t h = 0; h < heads; h++) {
        std::vector<float> k(static_cast<size_t>(s.kv_len * q_dim)), v(static_cast<size_t>(s.kv_len * op.v_dim));
        std::vector<float> w(static_cast<size_t>(head_rows * op.kv_lora));
        for (int64_t r = 0; r < head_rows; r++) op.kv_b.decode(h * head_rows + r, 0, op.kv_lora, w.data() + r * op.kv_lora);
        for (int64_t j = 0; j < s.kv_len; j++) {
          load_cache_row(op.cache, s, j, latent.data());
          for (int64_t r = 0; r < head_rows; r++) {
            float sum = 0;
            for (int64_t i = 0; i < op.kv_lora; i++) sum += w[static_cast<size_t>(r * op.kv_lora + i)] * latent[static_cast<size_t>(i)];
            if (r < op.nope) k[static_cast<size_t>(j * q_dim + r)] = sum;
            else v[static_cast<size_t>(j * op.v_dim + r - op.nope)] = sum;
          }
          for (int64_t i = 0; i < op.rope; i++)
            k[static_cast<size_t>(j * q_dim + op.nope + i)] = latent[static_cast<size_t>(op.kv_lora + i)];
        }
        for (int t = 0; t < s.q_len; t++)
          attend(op.q.f32(s.q_begin + t, h), k.data(), v.data(), static_cast<size_t>(q_dim), static_cast<size_t>(op.v_dim),
                 s.kv_len - s.q_len + t + 1, q_dim, op.v_dim, op.scale, scores, op.out.f32(s.q_begin + t, h));
      }
  }

  void moe_route(const MoeRoute& op) override {
    int64_t experts = op.logits.cols(), top_k = op.ids.cols(), per_group = experts / op.groups;
    std::vector<float> score(static_cast<size_t>(experts)), choice(score), group(static_cast<size_t>(op.groups));
    for (int64_t t = 0; t < op.logits.rows(); t++) {
      const float* x = op.logits.f32(t);
      float top = *std::max_element(x, x + experts), total = 0;
      for (int64_t e = 0; e < experts; e++) {
        auto i = static_cast<size_t>(e);
        score[i] = op.score == RouterScore::kSigmoid ? 1.0f / (1.0f + std::exp(-x[e])) : std::exp(x[e] - top);
        total += score[i];
      }
      for (size_t e = 0; e < score.size(); e++) {
        if (op.score == RouterScore::kSoftmax) score[e] /= total;
        choice[e] = score[e] + (op.bias.valid() ? *op.bias.f32(static_cast<int64_t>(e)) : 0.0f);
      }
      if (op.groups > 1) {
        for (int g = 0; g < op.groups; g++) {
          auto begin = choice.begin() + g * per_group;
          std::vector<float> sorted(begin, begin + per_group);
          std::sort(sorted.begin(), sorted.end(), std::greater<>());
          float second = sorted.size() > 1 ? sorted[1] : 0.0f;
          group[static_cast<size_t>(g)] = op.group_score == GroupScore::kMax ? sorted[0] : sorted[0] + second;
        }
        std::vector<int> kept = best(group, op.top_groups);
        for (int64_t e = 0; e < experts; e++)
          if (std::find(kept.begin(), kept.end(), static_cast<int>(e / per_group)) == kept.end())
            choice[static_cast<size_t>(e)] = -INFINITY;
      }
      std::vector<int> chosen = best(choice, static_cast<int>(top_k));
      float sum = 0;
      for (int e : chosen) sum += score[static_cast<size_t>(e)];
      for (int64_t k = 0; k < top_k; k++) {
        int e = chosen[static_cast<size_t>(k)];
        *op.ids.ptr<int32_t>(t, k) = e;
        float w = score[static_cast<size_t>(e)];
        if (op.normalise) w /= sum + 1e-20f;
        *op.weights.f32(t, k) = w * op.routed_scale;
      }
    }
  }

  void moe_experts(const MoeExperts& op) override {
    int64_t dim = op.x.cols();
    std::vector<float> gate, up, y(static_cast<size_t>(dim));
    for (int64_t t = 0; t < op.x.rows(); t++)
      for (int64_t k = 0; k < op.ids.cols(); k++) {
        int64_t e = *op.ids.ptr<int32_t>(t, k) - op.first;
        if (e < 0 || e >= static_cast<int64_t>(op.experts.size())) continue;  // another device owns this expert
        const Expert& expert = op.experts[static_cast<size_t>(e)];
        gate.resize(static_cast<size_t>(expert.gate.out));
        up.resize(gate.size());
        int64_t inner = expert.gate.out;
        Tensor g = Tensor::of(gate.data(), Dtype::kF32, {1, inner}), u = Tensor::of(up.data(), Dtype::kF32, {1, inner});
        linear({.out = g, .x = op.x.slice(0, t, 1), .weight = expert.gate});
        linear({.out = u, .x = op.x.slice(0, t, 1), .weight = expert.up});
        act_mul({.out = g, .gate = g, .up = u});
        linear({.out = Tensor::of(y.data(), Dtype::kF32, {1, dim}), .x = g, .weight = expert.down});
        for (int64_t i = 0; i < dim; i++) *op.out.f32(t, i) += *op.weights.f32(t, k) * y[static_cast<size_t>(i)];
      }
  }

 private:
  // One query row against `visible` keys and values: softmax(q k * scale) v.
  static void attend(const float* q, const float* k, const float* v, size_t k_stride, size_t v_stride, int64_t visible, int64_t k_dim,
                     int64_t v_dim, float scale, std::vector<float>& scores, float* out) {
    scores.assign(static_cast<size_t>(visible), 0.0f);
    float top = -INFINITY, total = 0;
    for (size_t j = 0; j < scores.size(); j++) {
      for (int64_t i = 0; i < k_dim; i++) scores[j] += q[i] * k[j * k_stride + static_cast<size_t>(i)];
      scores[j] *= scale;
      top = std::max(top, scores[j]);
    }
    for (float& s : scores) total += s = std::exp(s - top);
    for (int64_t i = 0; i < v_dim; i++) {
      float sum = 0;
      for (size_t j = 0; j < scores.size(); j++) sum += scores[j] * v[j * v_stride + static_cast<size_t>(i)];
      out[i] = sum / total;
    }
  }

  // Indices of the n largest values, best first, the lower index first among equals.
  static std::vector<int> best(const std::vector<float>& values, int n) {
    std::vector<int> order(values.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)]; });
    order.resize(static_cast<size_t>(n));
    return order;
  }

  RankGroup* group_;
  int rank_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(RankGroup* group, int rank) { return std::make_unique<ReferenceBackend>(group, rank); }

}  // namespace dg
