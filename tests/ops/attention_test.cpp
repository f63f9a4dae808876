// attention and mla_attention: cache types, block sizes, grouped heads, prefill and decode mixed; chunked = whole.
#include <cmath>

#include "device/scratch.h"
#include "ops_table.h"

namespace dg::ops_table {
namespace {

using Param = std::tuple<std::string, Dtype, int>;  // instruction set, cache type, block_tokens

class AttentionTest : public ::testing::TestWithParam<Param> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  Dtype dtype() const { return std::get<1>(GetParam()); }
  int block_tokens() const { return std::get<2>(GetParam()); }
};

// All cache types with blocks of 16 tokens, all block sizes with bf16.
std::vector<Param> attention_table() {
  std::vector<Param> table;
  for (const std::string& isa : tested_isas()) {
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16, Dtype::kF8E4m3, Dtype::kI8}) table.emplace_back(isa, dtype, 16);
    for (int block_tokens : {1, 3, 64}) table.emplace_back(isa, Dtype::kBf16, block_tokens);
    table.emplace_back(isa, Dtype::kI8, 3);
  }
  return table;
}

std::string param_name(const ::testing::TestParamInfo<Param>& info) {
  return std::get<0>(info.param) + "_" + dtype_word(std::get<1>(info.param)) + "_block" + std::to_string(std::get<2>(info.param));
}

struct Part {
  int q_len, kv_len;
  bool decode;
};

// A score is a sum of dim products (relative error about sqrt(dim) eps); an error d in a score changes its softmax weight
// by the factor e^d, and the weighted sum of up to kv_len values rounds like sqrt(kv_len).
double attention_tolerance(double dim, double q_norm, double k_norm, double scale, double kv_len, double v_largest) {
  const double score = q_norm * k_norm * scale;
  return (8 * kEps * std::sqrt(dim) * score + 8 * kEps * score + 4 * kEps * std::sqrt(kv_len) + 16 * kEps) * v_largest;
}

// Tiles multiply in bf16: q, the weights and, where the cache is neither bf16 nor fp8, k and v are rounded to it.
bool rounds_to_bf16(const std::string& isa, Dtype cache) {
  if (accelerator()) return cache != Dtype::kF32;
  return isa == "amx" && cache != Dtype::kF32 && cache != Dtype::kF16;
}

// What `roundings` of the operands to bf16 do to a result. Rounding q (or k) moves a score by the sum over i of d_i q_i k_i
// scale with independent |d_i| <= eps, whose standard deviation is at most eps s with s = scale |q| |k| / sqrt(dim) when q and
// k have no outstanding elements; rounding weights or values moves the output by eps of itself. All of these are independent of
// each other, so that the root mean square error is at most eps sqrt(roundings (1 + s^2)) of the root mean square of v, and as
// weights sum to 1, of a row's output where one weight dominates. Single elements stay within six standard deviations.
struct Bf16Error {
  double rms, largest;
};
Bf16Error bf16_error(int roundings, double s, double v_rms) {
  const double rms = kBf16Eps * std::sqrt(roundings * (1 + s * s)) * v_rms;
  return {rms, 8 * rms};
}

// Every element within `largest`, and all together within `rms` (0: not looked at).
void expect_close(const Buffer& actual, const Buffer& expected, double largest, double rms, const std::string& what) {
  double sum = 0, count = 0;
  for (int64_t t = 0; t < actual.view.rows(); t++)
    for (int64_t i = 0; i < actual.row_elements(); i++) {
      const double d = double{actual.at(t, i)} - expected.at(t, i);
      ASSERT_LE(std::fabs(d), largest) << what << ", token " << t << " at " << i << ": " << actual.at(t, i) << ", expected "
                                       << expected.at(t, i);
      sum += d * d, count++;
    }
  if (rms > 0) {
    EXPECT_LE(std::sqrt(sum / count), rms) << what << ": root mean square of all errors";
  }
}

struct GqaCase {
  int heads, kv_heads, dim;
};
constexpr GqaCase kGqa[] = {{4, 4, 16}, {6, 2, 20}, {14, 2, 64}, {3, 1, 7}, {8, 1, 128}, {70, 1, 24}, {12, 4, 32}};

TEST_P(AttentionTest, GroupedHeadsAreTheReference) {
  DG_TRACE_SEED();
  Random random(11);
  const std::vector<Part> parts = {{1, 1, true}, {1, 65, true}, {9, 9, false}, {70, 131, false}, {1, 200, true}, {3, 64, false}};
  for (GqaCase c : kGqa) {
    Cache k(dtype(), block_tokens(), c.kv_heads * c.dim), v(dtype(), block_tokens(), c.kv_heads * c.dim, 4);
    int tokens = 0;
    for (const Part& p : parts) k.add_sequence(p.kv_len, random), v.add_sequence(p.kv_len, random), tokens += p.q_len;
    k.finish(random), v.finish_like(k);
    std::vector<SequenceSlice> slices;
    int begin = 0;
    for (size_t i = 0; i < parts.size(); i++) {
      slices.push_back({begin, parts[i].q_len, parts[i].kv_len, k.blocks(i), parts[i].decode});
      begin += parts[i].q_len;
    }
    Buffer q({tokens, c.heads, c.dim}), expected({tokens, c.heads, c.dim}), actual({tokens, c.heads, c.dim}, 7);
    q.randomise(random);
    Attention op{.out = expected.view,
                 .q = q.view,
                 .k_cache = k.view(),
                 .v_cache = v.view(),
                 .sequences = slices,
                 .kv_heads = c.kv_heads,
                 .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
                 .scratch = nullptr};
    Scratch scratch(attention_scratch_bytes(op));
    op.scratch = &scratch.arena;
    reference().attention(op);
    op.out = actual.view;
    cpu(isa()).attention(op);
    const double tolerance = attention_tolerance(c.dim, 2 * std::sqrt(c.dim), k.largest_row_norm(), op.scale, 200, v.largest());
    // q, k and v are standard normal: a score has the standard deviation scale sqrt(dim) = 1.
    const Bf16Error bf16 = rounds_to_bf16(isa(), dtype()) ? bf16_error(4, 1, 1) : Bf16Error{0, 0};
    expect_close(actual, expected, tolerance + bf16.largest, bf16.rms, std::to_string(c.heads) + " heads of " + std::to_string(c.dim));
    actual.expect_gaps_untouched();
    Buffer again({tokens, c.heads, c.dim});
    op.out = again.view;
    cpu(isa(), 3).attention(op);
    EXPECT_TRUE(same_rows(again, actual)) << "3 threads";
  }
}

// Chunks of every kind, and rows computed beside other sequences: the same bits as the whole prefill alone.
TEST_P(AttentionTest, ChunkedPrefillIsWholePrefill) {
  DG_TRACE_SEED();
  Random random(12);
  constexpr int kTokens = 150;
  for (GqaCase c : {GqaCase{6, 2, 20}, GqaCase{4, 4, 64}}) {
    Cache k(dtype(), block_tokens(), c.kv_heads * c.dim), v(dtype(), block_tokens(), c.kv_heads * c.dim);
    for (int length : {kTokens, 77}) k.add_sequence(length, random), v.add_sequence(length, random);
    k.finish(random), v.finish_like(k);
    Buffer q({kTokens, c.heads, c.dim}), whole({kTokens, c.heads, c.dim});
    q.randomise(random);
    auto run = [&](Tensor out, Tensor query, std::vector<SequenceSlice> slices, int threads) {
      cpu(isa(), threads)
          .attention({.out = out,
                      .q = query,
                      .k_cache = k.view(),
                      .v_cache = v.view(),
                      .sequences = slices,
                      .kv_heads = c.kv_heads,
                      .scale = 0.3f,
                      .scratch = nullptr});
    };
    run(whole.view, q.view, {{0, kTokens, kTokens, k.blocks(0), false}}, 2);
    for (int chunk : {1, 7, 63, 64, 65, 100}) {
      Buffer chunked({kTokens, c.heads, c.dim});
      for (int begin = 0; begin < kTokens; begin += chunk) {
        const int n = std::min(chunk, kTokens - begin);
        run(chunked.rows(begin, n), q.rows(begin, n), {{0, n, begin + n, k.blocks(0), false}}, 1 + chunk % 3);
      }
      ASSERT_TRUE(same_rows(chunked, whole)) << "chunks of " << chunk << ", heads of " << c.dim;
    }
    // Rows 100..149 behind 5 rows of another sequence.
    Buffer mixed_q({55, c.heads, c.dim}), mixed({55, c.heads, c.dim});
    mixed_q.randomise(random);
    for (int64_t t = 0; t < 50; t++) std::memcpy(mixed_q.view.f32(5 + t), q.view.f32(100 + t), static_cast<size_t>(c.heads * c.dim) * 4);
    run(mixed.view, mixed_q.view, {{0, 5, 77, k.blocks(1), false}, {5, 50, kTokens, k.blocks(0), false}}, 2);
    for (int64_t t = 0; t < 50; t++) ASSERT_TRUE(same_row(mixed, 5 + t, whole, 100 + t));
  }
}

// Decode over one and many ranges of positions, at their edges and behind the length where the ranges grow: the reference's
// values, and the same bits for a row alone, beside others of its sequence, and on any number of threads.
TEST_P(AttentionTest, LongDecode) {
  DG_TRACE_SEED();
  Random random(13);
  const std::vector<int> lengths = {511, 512, 514, 1100, 16385};
  const GqaCase c = {6, 2, 32};
  constexpr int kRows = 3;
  Cache k(dtype(), block_tokens(), c.kv_heads * c.dim), v(dtype(), block_tokens(), c.kv_heads * c.dim);
  for (int n : lengths) k.add_sequence(n, random), v.add_sequence(n, random);
  k.finish(random), v.finish_like(k);
  const int tokens = kRows * static_cast<int>(lengths.size());
  Buffer q({tokens, c.heads, c.dim}), expected({tokens, c.heads, c.dim}), all({tokens, c.heads, c.dim});
  q.randomise(random, 3.0f);
  std::vector<SequenceSlice> slices;
  for (size_t i = 0; i < lengths.size(); i++) slices.push_back({kRows * static_cast<int>(i), kRows, lengths[i], k.blocks(i), true});
  auto run = [&](Backend& backend, Tensor out, Tensor query, std::span<const SequenceSlice> sequences) {
    backend.attention({.out = out,
                       .q = query,
                       .k_cache = k.view(),
                       .v_cache = v.view(),
                       .sequences = sequences,
                       .kv_heads = c.kv_heads,
                       .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
                       .scratch = nullptr});
  };
  run(reference(), expected.view, q.view, slices);
  run(cpu(isa()), all.view, q.view, slices);
  const double tolerance = attention_tolerance(c.dim, 6 * std::sqrt(c.dim), k.largest_row_norm(), 1 / std::sqrt(c.dim), 16385, v.largest());
  const Bf16Error bf16 = rounds_to_bf16(isa(), dtype()) ? bf16_error(4, 3, 1) : Bf16Error{0, 0};
  expect_close(all, expected, tolerance + bf16.largest, bf16.rms, "decode");
  for (int threads : {1, 5}) {
    Buffer again({tokens, c.heads, c.dim});
    run(cpu(isa(), threads), again.view, q.view, slices);
    EXPECT_TRUE(same_rows(again, all)) << threads << " threads";
  }
  for (size_t i = 0; i < lengths.size(); i++)
    for (int row = 0; row < kRows; row++) {
      Buffer one({1, c.heads, c.dim});
      const SequenceSlice slice{0, 1, lengths[i] - kRows + 1 + row, k.blocks(i), true};
      run(cpu(isa()), one.view, q.rows(kRows * static_cast<int>(i) + row, 1), {&slice, 1});
      ASSERT_TRUE(same_row(one, 0, all, kRows * static_cast<int>(i) + row)) << "row " << row << " of " << lengths[i];
    }
}

// kv_write stores what the reference stores, bit for bit, and nothing outside the row.
TEST_P(AttentionTest, CacheRowsAreTheReference) {
  DG_TRACE_SEED();
  Random random(14);
  for (int64_t width : {1, 7, 64, 65, 200, 576}) {
    Cache expected(dtype(), block_tokens(), width, 2), actual(dtype(), block_tokens(), width, 2);
    expected.add_sequence(5, random), actual.add_sequence(5, random);
    expected.finish(random), actual.finish_like(expected);
    Buffer values({5, width});
    values.randomise(random, 1.0f);
    for (int64_t i = 0; i < width; i++) {
      values.view.f32(1)[i] *= 1e4f;  // saturates fp8
      values.view.f32(2)[i] *= 1e-7f;
      values.view.f32(3)[i] = i % 3 == 0 ? 0.0f : -values.view.f32(3)[i];
    }
    std::vector<int32_t> slot;
    for (int t = 0; t < 5; t++) slot.push_back(expected.blocks(0)[t / block_tokens()] * block_tokens() + t % block_tokens());
    Ints slots(slot);
    actual.fill_from(expected);
    reference().kv_write({.cache = expected.view(), .values = values.view, .slots = slots.view()});
    cpu(isa()).kv_write({.cache = actual.view(), .values = values.view, .slots = slots.view()});
    EXPECT_TRUE(actual.same_bytes(expected)) << "width " << width;
  }
}

INSTANTIATE_TEST_SUITE_P(Table, AttentionTest, ::testing::ValuesIn(attention_table()), param_name);

struct MlaCase {
  int heads, nope, rope, v_dim, kv_lora;
};
constexpr MlaCase kMla[] = {{2, 8, 4, 8, 32}, {5, 20, 6, 12, 40}, {16, 32, 16, 32, 128}, {3, 7, 2, 9, 65}, {20, 32, 32, 48, 64}};

using MlaParam = std::tuple<std::string, Dtype, std::string>;  // instruction set, cache type, format of kv_b

// All formats with a bf16 cache, all cache types with f32 weights.
std::vector<MlaParam> mla_table() {
  std::vector<MlaParam> table;
  for (const std::string& isa : tested_isas()) {
    for (const std::string& format : all_format_names()) table.emplace_back(isa, Dtype::kBf16, format);
    for (Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kF8E4m3, Dtype::kI8}) table.emplace_back(isa, dtype, "f32");
  }
  return table;
}

class MlaTest : public ::testing::TestWithParam<MlaParam> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  Dtype dtype() const { return std::get<1>(GetParam()); }
  const Format& format() const { return *find_format(std::get<2>(GetParam())); }
  void rows_alone(const MlaCase& c, int tokens, Random& random);
};

struct MlaProblem {
  MlaProblem(const MlaCase& c, Dtype dtype, const Format& format, const std::vector<Part>& parts, Random& random)
      : shape(c), cache(dtype, 16, c.kv_lora + c.rope), kv_b(format, c.heads * (c.nope + c.v_dim), c.kv_lora, random), tokens(0) {
    for (const Part& p : parts) cache.add_sequence(p.kv_len, random);
    cache.finish(random);
    for (size_t i = 0; i < parts.size(); i++) {
      slices.push_back({tokens, parts[i].q_len, parts[i].kv_len, cache.blocks(i), parts[i].decode});
      tokens += parts[i].q_len;
    }
  }
  MlaAttention op(Tensor out, Tensor q, std::span<const SequenceSlice> sequences) {
    return {.out = out,
            .q = q,
            .cache = cache.view(),
            .kv_b = kv_b.weight,
            .sequences = sequences,
            .nope = shape.nope,
            .rope = shape.rope,
            .v_dim = shape.v_dim,
            .kv_lora = shape.kv_lora,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape.nope + shape.rope)),
            .scratch = nullptr};
  }
  void run(Backend& backend, Tensor out, Tensor q, std::span<const SequenceSlice> sequences) {
    MlaAttention a = op(out, q, sequences);
    Scratch scratch(mla_attention_scratch_bytes(a));  // exactly what the dry run would reserve
    a.scratch = &scratch.arena;
    backend.mla_attention(a);
  }
  double tolerance() const {
    // k and v are themselves sums over kv_lora (values of norm ~ the latent row's), and absorption reorders the double sum.
    const double latent = cache.largest_row_norm(), dim = shape.nope + shape.rope;
    const double made = 1 + std::sqrt(static_cast<double>(shape.kv_lora));
    return made * attention_tolerance(dim, 2 * std::sqrt(dim), latent * 2, 1 / std::sqrt(dim), 256, latent);
  }
  MlaCase shape;
  Cache cache;
  RandomWeight kv_b;
  int tokens;
  std::vector<SequenceSlice> slices;
};

TEST_P(MlaTest, IsTheReference) {
  DG_TRACE_SEED();
  Random random(21);
  for (const MlaCase& c : kMla) {
    MlaProblem p(c, dtype(), format(), {{1, 1, true}, {9, 9, false}, {1, 130, true}, {20, 85, false}, {3, 66, true}, {1, 64, true}},
                 random);
    Buffer q({p.tokens, c.heads, c.nope + c.rope}), expected({p.tokens, c.heads, c.v_dim}), actual({p.tokens, c.heads, c.v_dim}, 3);
    q.randomise(random);
    p.run(reference(), expected.view, q.view, p.slices);
    p.run(cpu(isa()), actual.view, q.view, p.slices);
    // Standard normal latent rows times weight rows of length 1: k and v are standard normal too. Rounded are q, kv_b, the
    // latent rows, k or the absorbed query, the weights, v or the latent result.
    const Bf16Error bf16 = rounds_to_bf16(isa(), dtype()) ? bf16_error(7, 1, 1) : Bf16Error{0, 0};
    expect_close(actual, expected, p.tolerance() + bf16.largest, bf16.rms,
                 std::to_string(c.heads) + " heads, latent " + std::to_string(c.kv_lora));
    actual.expect_gaps_untouched();
    Buffer again({p.tokens, c.heads, c.v_dim});
    p.run(cpu(isa(), 5), again.view, q.view, p.slices);
    EXPECT_TRUE(same_rows(again, actual)) << "5 threads";
  }
}

TEST_P(MlaTest, RowsDependOnTheirSequenceAlone) {
  DG_TRACE_SEED();
  Random random(22);
  constexpr int kTokens = 140;
  rows_alone({5, 20, 6, 12, 40}, kTokens, random);
  if (std::get<2>(GetParam()) == "bf16") rows_alone({20, 32, 32, 48, 64}, kTokens, random);  // whole tiles
}

void MlaTest::rows_alone(const MlaCase& c, int tokens, Random& random) {
  MlaProblem p(c, dtype(), format(), {{tokens, tokens, false}, {1, 90, true}, {1, 1033, true}}, random);
  Buffer q({p.tokens, c.heads, c.nope + c.rope}), all({p.tokens, c.heads, c.v_dim});
  q.randomise(random);
  p.run(cpu(isa()), all.view, q.view, p.slices);
  for (int chunk : {1, 9, 64, 65, 139}) {
    Buffer chunked({tokens, c.heads, c.v_dim});
    for (int begin = 0; begin < tokens; begin += chunk) {
      const int n = std::min(chunk, tokens - begin);
      const SequenceSlice slice{0, n, begin + n, p.cache.blocks(0), false};
      p.run(cpu(isa()), chunked.rows(begin, n), q.rows(begin, n), {&slice, 1});
    }
    for (int64_t t = 0; t < tokens; t++) ASSERT_TRUE(same_row(chunked, t, all, t)) << "chunks of " << chunk;
  }
  for (int s : {1, 2}) {  // a decode row alone
    Buffer one({1, c.heads, c.v_dim});
    const int64_t row = p.slices[static_cast<size_t>(s)].q_begin;
    const SequenceSlice slice{0, 1, p.slices[static_cast<size_t>(s)].kv_len, p.cache.blocks(static_cast<size_t>(s)), true};
    p.run(cpu(isa()), one.view, q.rows(row, 1), {&slice, 1});
    EXPECT_TRUE(same_row(one, 0, all, row));
  }
}

INSTANTIATE_TEST_SUITE_P(Table, MlaTest, ::testing::ValuesIn(mla_table()), [](const auto& info) {
  return std::get<0>(info.param) + "_" + dtype_word(std::get<1>(info.param)) + "_" + std::get<2>(info.param);
});

// Rows of a chunk and wide heads need more scratch than a worker starts with.
TEST(Attention, ScratchGrows) {
  DG_TRACE_SEED();
  Random random(23);
  const GqaCase c = {2, 1, 2100};
  Cache k(Dtype::kBf16, 16, c.dim), v(Dtype::kBf16, 16, c.dim);
  k.add_sequence(70, random), v.add_sequence(70, random);
  k.finish(random), v.finish_like(k);
  Buffer q({3, c.heads, c.dim}), expected({3, c.heads, c.dim}), actual({3, c.heads, c.dim});
  q.randomise(random);
  const SequenceSlice slice{0, 3, 70, k.blocks(0), false};
  Attention op{.out = expected.view,
               .q = q.view,
               .k_cache = k.view(),
               .v_cache = v.view(),
               .sequences = {&slice, 1},
               .kv_heads = 1,
               .scale = 0.02f,
               .scratch = nullptr};
  reference().attention(op);
  op.out = actual.view;
  auto fresh = make_cpu_backend({.threads = 2, .pin = false});
  ASSERT_TRUE(fresh.ok()) << fresh.error().message;
  (*fresh)->attention(op);
  const double tolerance = attention_tolerance(c.dim, 2 * std::sqrt(c.dim), k.largest_row_norm(), op.scale, 70, v.largest());
  const Bf16Error bf16 = rounds_to_bf16(usable_cpu_isas()[0], Dtype::kBf16) ? bf16_error(4, 1, 1) : Bf16Error{0, 0};
  expect_close(actual, expected, tolerance + bf16.largest, bf16.rms, "heads of 2100");
}

}  // namespace
}  // namespace dg::ops_table
