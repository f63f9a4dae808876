#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "io/gguf_names.h"
#include "io/gguf_write.h"
#include "io/tensor_index.h"
#include "io/test_files.h"
#include "quant/bf16.h"
#include "quant/f32.h"
#include "quant/q4_k.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

std::vector<std::byte> to_bytes(std::string_view text) {
  const auto span = as_bytes(text);
  return {span.begin(), span.end()};
}

// A tensor of counting f32 values: 0, 1, 2, ...
struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  const Format* format = &kF32;
};

std::vector<float> counting(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i);
  return values;
}

void write_test_gguf(const std::string& path, const GgufMetadata& metadata, const std::vector<TestTensor>& tensors) {
  std::vector<GgufTensorToWrite> list;
  for (const TestTensor& t : tensors) list.push_back({t.name, t.format, t.shape});
  auto writer = GgufWriter::create(path, metadata, list);
  ASSERT_TRUE(writer.ok()) << writer.error().message;
  for (size_t i = 0; i < tensors.size(); i++) {
    const std::vector<float> values = counting(tensors[i].shape);
    const int64_t in = tensors[i].shape.back(), rows = static_cast<int64_t>(values.size()) / in;
    std::vector<std::byte> bytes(list[i].bytes());
    tensors[i].format->encode(values.data(), rows, in, bytes.data(), nullptr);
    // In pieces, as the exporter does.
    for (size_t at = 0; at < bytes.size(); at += 1000) {
      auto done = writer->write(std::span(bytes).subspan(at, std::min<size_t>(1000, bytes.size() - at)));
      ASSERT_TRUE(done.ok()) << done.error().message;
    }
  }
  ASSERT_TRUE(writer->commit().ok());
}

GgufMetadata architecture(std::string_view name) {
  GgufMetadata metadata;
  metadata.add_text("general.architecture", name);
  return metadata;
}

TEST(Gguf, WhatIsWrittenIsRead) {
  TestDirectory dir;
  GgufMetadata metadata = architecture("qwen2");
  metadata.add_u32("a.u32", 4000000000u);
  metadata.add_f32("a.f32", 0.1f);
  metadata.add_bool("a.bool", true);
  metadata.add_texts("a.texts", std::vector<std::string>{"x", "", "模型"});
  metadata.add_i32s("a.numbers", std::vector<int32_t>{1, -2, 3});
  write_test_gguf(dir.file("m.gguf"), metadata,
                  {{"token_embd.weight", {3, 64}, &kQ80}, {"output_norm.weight", {5}}, {"blk.0.ffn_up.weight", {2, 256}, &kQ4K}});
  auto model = open_gguf({dir.file("m.gguf")});
  ASSERT_TRUE(model.ok()) << model.error().message;
  const GgufHeader& header = model->headers[0];
  EXPECT_EQ(header.find("general.architecture")->text(), "qwen2");
  EXPECT_EQ(header.find("a.u32")->integer(), 4000000000);
  EXPECT_FLOAT_EQ(static_cast<float>(*header.find("a.f32")->number()), 0.1f);
  EXPECT_EQ(header.find("a.bool")->boolean(), true);
  EXPECT_EQ(header.find("a.texts")->text(2), "模型");
  EXPECT_EQ(header.find("a.texts")->count, 3u);
  EXPECT_EQ(header.find("a.numbers")->integer(1), -2);
  EXPECT_EQ(header.find("a.numbers")->integer(3), std::nullopt);
  EXPECT_EQ(header.find("a.bool")->integer(), std::nullopt);
  EXPECT_EQ(header.find("nothing"), nullptr);
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "token_embd.weight");
  EXPECT_EQ(header.tensors[0].ne[0], 64);
  EXPECT_EQ(header.tensors[0].ne[1], 3);
  EXPECT_EQ(header.tensors[0].bytes, 3u * 2 * 34);
  for (const GgufTensor& t : header.tensors) EXPECT_EQ(t.offset % 32, 0u) << t.name;

  auto index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_TRUE(index.ok()) << index.error().message;
  const TensorInfo* embedding = index->find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->format, &kQ80);
  EXPECT_EQ(embedding->shape, (std::vector<int64_t>{3, 64}));
  EXPECT_EQ(index->find("model.norm.weight")->dtype, Dtype::kF32);
  EXPECT_EQ(index->find("model.norm.weight")->format, nullptr);
  EXPECT_EQ(index->find("model.layers.0.mlp.up_proj.weight")->format, &kQ4K);
  EXPECT_EQ(index->total_bytes(), 3u * 2 * 34 + 20 + 2 * 144);
  EXPECT_EQ(index->metadata().at("general.architecture"), "qwen2");
  // A directory with one file is the same model.
  auto by_directory = TensorIndex::open(dir.path());
  ASSERT_TRUE(by_directory.ok()) << by_directory.error().message;
  EXPECT_EQ(by_directory->tensors().size(), 3u);
}

// The published checkpoint's row r of a head must be found where the converter's permutation put it: reshape (2, n/2),
// swap, flatten.
TEST(Gguf, LlamaRowsComeBackInOrder) {
  TestDirectory dir;
  GgufMetadata metadata = architecture("llama");
  metadata.add_u32("llama.attention.head_count", 3);
  metadata.add_u32("llama.attention.head_count_kv", 1);
  write_test_gguf(
      dir.file("m.gguf"), metadata,
      {{"blk.0.attn_q.weight", {24, 4}}, {"blk.0.attn_k.weight", {8, 4}}, {"blk.0.attn_v.weight", {8, 4}}, {"blk.0.attn_q.bias", {24}}});
  auto index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_TRUE(index.ok()) << index.error().message;
  std::vector<int64_t> place;  // place[r of a head] in the file, by the converter's own steps
  for (int64_t half = 0; half < 2; half++)
    for (int64_t i = 0; i < 4; i++) place.push_back(2 * i + half);
  for (const char* name : {"q", "k", "v"}) {
    const TensorInfo* info = index->find(std::string("model.layers.0.self_attn.") + name + "_proj.weight");
    ASSERT_NE(info, nullptr) << name;
    const int64_t all = info->shape[0];
    for (int64_t first : {int64_t{0}, int64_t{3}, all - 1})
      for (int64_t rows : {int64_t{1}, std::min<int64_t>(7, all - first), all - first}) {
        std::vector<float> values(static_cast<size_t>(rows) * 4);
        ASSERT_TRUE(index->read_rows(*info, first, rows, std::as_writable_bytes(std::span(values))).ok());
        for (int64_t r = 0; r < rows; r++) {
          const int64_t row = first + r, at = *name == 'v' ? row : row / 8 * 8 + place[static_cast<size_t>(row % 8)];
          EXPECT_EQ(values[static_cast<size_t>(r) * 4], static_cast<float>(at * 4)) << name << " row " << row;
        }
      }
    EXPECT_EQ(info->contiguous(), *name == 'v');
  }
  const TensorInfo* bias = index->find("model.layers.0.self_attn.q_proj.bias");
  std::vector<float> values(24);
  ASSERT_TRUE(index->read_rows(*bias, 0, 1, std::as_writable_bytes(std::span(values))).ok());
  for (int64_t r = 0; r < 24; r++)
    EXPECT_EQ(values[static_cast<size_t>(r)], static_cast<float>(r / 8 * 8 + place[static_cast<size_t>(r % 8)]));
}

TEST(Gguf, ExpertsAndHalvesOfKvBBecomeMatrices) {
  TestDirectory dir;
  write_test_gguf(dir.file("m.gguf"), architecture("deepseek2"),
                  {{"blk.1.ffn_gate_exps.weight", {3, 2, 32}, &kQ80},
                   {"blk.1.ffn_gate_up_exps.weight", {3, 6, 4}},
                   {"blk.1.attn_k_b.weight", {2, 5, 4}},    // (heads, kv_lora, nope)
                   {"blk.1.attn_v_b.weight", {2, 3, 5}}});  // (heads, v, kv_lora)
  auto opened = open_gguf({dir.file("m.gguf")});
  ASSERT_TRUE(opened.ok());
  auto index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_FALSE(index.ok()) << "gate comes twice: whole and fused";
  EXPECT_NE(index.error().message.find("model.layers.1.mlp.experts.0.gate_proj.weight"), std::string::npos) << index.error().message;

  write_test_gguf(dir.file("m.gguf"), architecture("deepseek2"),
                  {{"blk.1.ffn_down_exps.weight", {3, 2, 32}, &kQ80},
                   {"blk.1.ffn_gate_up_exps.weight", {3, 6, 4}},
                   {"blk.1.attn_k_b.weight", {2, 5, 4}},
                   {"blk.1.attn_v_b.weight", {2, 3, 5}}});
  index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_TRUE(index.ok()) << index.error().message;
  EXPECT_EQ(index->tensors().size(), 3u + 6 + 1);
  const TensorInfo* down = index->find("model.layers.1.mlp.experts.2.down_proj.weight");
  EXPECT_EQ(down->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(down->bytes, 68u);
  EXPECT_EQ(down->offset, index->find("model.layers.1.mlp.experts.0.down_proj.weight")->offset + 2 * 68);
  const TensorInfo* up = index->find("model.layers.1.mlp.experts.1.up_proj.weight");
  std::vector<float> values(12);
  ASSERT_TRUE(index->read_rows(*up, 0, 3, std::as_writable_bytes(std::span(values))).ok());
  EXPECT_EQ(values[0], 24.0f + 12.0f);  // expert 1, behind its 3 gate rows of 4

  const TensorInfo* kv_b = index->find("model.layers.1.self_attn.kv_b_proj.weight");
  ASSERT_NE(kv_b, nullptr);
  EXPECT_EQ(kv_b->shape, (std::vector<int64_t>{14, 5}));
  EXPECT_EQ(kv_b->dtype, Dtype::kF32);
  for (int64_t first = 0; first < 14; first++)
    for (int64_t rows = 1; first + rows <= 14; rows++) {
      std::vector<float> got(static_cast<size_t>(rows * 5));
      ASSERT_TRUE(index->read_rows(*kv_b, first, rows, std::as_writable_bytes(std::span(got))).ok());
      for (int64_t r = first; r < first + rows; r++)
        for (int64_t c = 0; c < 5; c++) {
          const int64_t h = r / 7, i = r % 7;
          const int64_t expected = i < 4 ? h * 20 + c * 4 + i : h * 15 + (i - 4) * 5 + c;  // k_b is transposed
          ASSERT_EQ(got[static_cast<size_t>((r - first) * 5 + c)], static_cast<float>(expected)) << r << " " << c;
        }
    }
}

TEST(Gguf, HalvesInOtherTypesBecomeBf16AndAWholeKvBWins) {
  TestDirectory dir;
  write_test_gguf(dir.file("m.gguf"), architecture("deepseek2"),
                  {{"blk.0.attn_k_b.weight", {1, 2, 32}, &kQ80}, {"blk.0.attn_v_b.weight", {1, 1, 2}, &kBf16}});
  auto index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_TRUE(index.ok()) << index.error().message;
  const TensorInfo* kv_b = index->find("model.layers.0.self_attn.kv_b_proj.weight");
  EXPECT_EQ(kv_b->dtype, Dtype::kBf16);
  std::vector<uint16_t> got(33 * 2);
  ASSERT_TRUE(index->read_rows(*kv_b, 0, 33, std::as_writable_bytes(std::span(got))).ok());
  EXPECT_NEAR(bf16_to_float(got[2 * 5]), 5.0f, 0.3f);       // k_b (0, 5) transposed
  EXPECT_NEAR(bf16_to_float(got[2 * 5 + 1]), 37.0f, 0.5f);  // k_b (1, 5)
  EXPECT_EQ(bf16_to_float(got[65]), 1.0f);

  write_test_gguf(dir.file("m.gguf"), architecture("deepseek2"),
                  {{"blk.0.attn_kv_b.weight", {33, 2}}, {"blk.0.attn_k_b.weight", {1, 2, 32}}, {"blk.0.attn_v_b.weight", {1, 1, 2}}});
  index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_TRUE(index.ok()) << index.error().message;
  EXPECT_EQ(index->tensors().size(), 1u);
  EXPECT_TRUE(index->tensors()[0].contiguous());

  write_test_gguf(dir.file("m.gguf"), architecture("deepseek2"), {{"blk.0.attn_v_b.weight", {1, 1, 2}}});
  index = TensorIndex::open(dir.file("m.gguf"));
  ASSERT_FALSE(index.ok());
  EXPECT_NE(index.error().message.find("blk.0.attn_v_b.weight: expected attn_k_b beside it"), std::string::npos) << index.error().message;
}

TEST(Gguf, NamesGoBothWays) {
  const std::pair<const char*, const char*> kNames[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"},
      {"blk.3.attn_q.bias", "model.layers.3.self_attn.q_proj.bias"},
      {"blk.60.exp_probs_b.bias", "model.layers.60.mlp.gate.e_score_correction_bias"},
      {"blk.61.nextn.eh_proj.weight", "model.layers.61.eh_proj.weight"},
      {"blk.1.ffn_gate_inp.weight", "model.layers.1.mlp.gate.weight"},
      {"blk.1.attn_kv_a_mqa.weight", "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"},
  };
  for (auto [gguf, hf] : kNames) {
    EXPECT_EQ(gguf_to_hf_name(gguf), hf);
    EXPECT_EQ(hf_to_gguf_name(hf), gguf);
  }
  for (const char* other :
       {"blk.x.attn_q.weight", "blk.3.attn_q", "blk.3.unknown.weight", "blk.-1.attn_q.weight", "v.patch_embd.weight", ""})
    EXPECT_EQ(gguf_to_hf_name(other), std::nullopt) << other;
}

TEST(Gguf, SplitFilesAreOneModel) {
  TestDirectory dir;
  auto split = [&](int no, int count) {
    GgufMetadata metadata = architecture("qwen2");
    metadata.add_u32("split.no", static_cast<uint32_t>(no));
    metadata.add_u32("split.count", static_cast<uint32_t>(count));
    metadata.add_u32("split.tensors.count", 2);
    return metadata;
  };
  write_test_gguf(dir.file("m-00001-of-00002.gguf"), split(0, 2), {{"token_embd.weight", {3, 4}}});
  auto missing = TensorIndex::open(dir.path());
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("m-00002-of-00002.gguf: missing"), std::string::npos) << missing.error().message;
  write_test_gguf(dir.file("m-00002-of-00002.gguf"), split(1, 2), {{"output_norm.weight", {4}}});
  for (const std::string& path : {dir.path(), dir.file("m-00001-of-00002.gguf"), dir.file("m-00002-of-00002.gguf")}) {
    auto index = TensorIndex::open(path);
    ASSERT_TRUE(index.ok()) << index.error().message;
    EXPECT_EQ(index->file_count(), 2);
    EXPECT_EQ(index->find("model.norm.weight")->file, 1);
    std::vector<float> values(4);
    EXPECT_TRUE(index->read_rows(*index->find("model.norm.weight"), 0, 1, std::as_writable_bytes(std::span(values))).ok());
    EXPECT_EQ(values[3], 3.0f);
  }
  write_test_gguf(dir.file("m-00002-of-00002.gguf"), split(0, 2), {{"output_norm.weight", {4}}});
  auto wrong = TensorIndex::open(dir.path());
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("split.no: expected 1, found u32 0"), std::string::npos) << wrong.error().message;
  write_test_gguf(dir.file("other.gguf"), architecture("qwen2"), {{"output_norm.weight", {4}}});
  auto several = TensorIndex::open(dir.path());
  ASSERT_FALSE(several.ok());
  EXPECT_NE(several.error().message.find("expected the files of one GGUF model"), std::string::npos) << several.error().message;
}

// Raw files for what the writer refuses to write.
class Raw {
 public:
  Raw& u32(uint32_t v) { return add(&v, 4); }
  Raw& u64(uint64_t v) { return add(&v, 8); }
  Raw& text(std::string_view t) { return u64(t.size()).add(t.data(), t.size()); }
  Raw& head(uint64_t tensors, uint64_t keys) {
    add("GGUF", 4);
    return u32(3).u64(tensors).u64(keys);
  }
  Raw& tensor(std::string_view name, std::vector<uint64_t> ne, uint32_t type, uint64_t offset) {
    text(name).u32(static_cast<uint32_t>(ne.size()));
    for (uint64_t d : ne) u64(d);
    return u32(type).u64(offset);
  }
  Raw& pad(size_t bytes) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + bytes);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  Raw& add(const void* data, size_t n) {
    bytes_.append(static_cast<const char*>(data), n);
    return *this;
  }
  std::string bytes_;
};

TEST(Gguf, FaultsAreOneLineThatNamesThePlace) {
  struct Case {
    std::string bytes;
    const char* expected;
  };
  const uint64_t huge = uint64_t{1} << 62;
  const Case cases[] = {
      {"", "the file ends within the magic number"},
      {"PK\x03\x04 and more", "expected a GGUF file (beginning with \"GGUF\"), found the bytes 50 4b 03 04"},
      {std::string("GGUF\x01\0\0\0", 8), "expected GGUF version 2 or 3, found 1"},
      {std::string("GGUF\0\0\0\x03", 8), "found a big-endian file"},
      {Raw().head(huge, 0).bytes(), "expected at most 65536 tensors"},
      {Raw().head(0, huge).bytes(), "expected at most 65536 metadata keys"},
      {Raw().head(0, 1).text("a").u32(13).bytes(), "metadata key a: expected a type from 0 to 12, found 13"},
      {Raw().head(0, 1).text("a\n").u32(4).u32(1).bytes(), "metadata key 0: expected a name of 1 to 1024 printable"},
      {Raw().head(0, 1).u64(huge).bytes(), "the file ends within the name of metadata key 0"},
      {Raw().head(0, 1).text("a").u32(9).u32(9).u64(1).bytes(), "found element type 9"},
      {Raw().head(0, 1).text("a").u32(9).u32(8).u64(huge).bytes(), "the file ends within metadata key a"},
      {Raw().head(0, 1).text("a").u32(9).u32(4).u64(huge).bytes(), "the file ends within metadata key a"},
      {Raw().head(0, 2).text("a").u32(4).u32(1).text("a").u32(4).u32(1).bytes(), "metadata key a is given twice"},
      {Raw().head(0, 1).text("general.alignment").u32(4).u32(24).bytes(),
       "general.alignment: expected a power of two up to 1048576, found u32 24"},
      {Raw().head(1, 0).tensor("t", {}, 0, 0).bytes(), "tensor t: expected 1 to 4 dimensions, found 0"},
      {Raw().head(1, 0).tensor("t", {4, 0}, 0, 0).bytes(), "tensor t: dimension 1: expected a positive number"},
      {Raw().head(1, 0).tensor("t", {huge, 4}, 0, 0).bytes(), "tensor t: dimension 1: expected a positive number (the product below 2^63)"},
      {Raw().head(1, 0).tensor("t", {huge}, 0, 0).bytes(), "tensor t: expected less than 2^63 bytes"},
      {Raw().head(1, 0).tensor("t", {256}, 16, 0).bytes(), "tensor t: type IQ2_XXS (16) is not supported"},
      {Raw().head(1, 0).tensor("t", {256}, 152, 0).bytes(), "type 152, which ggml does not define"},
      {Raw().head(1, 0).tensor("t", {100}, 8, 0).bytes(),
       "tensor t: type Q8_0: expected rows of whole blocks of 32 elements, found rows of 100"},
      {Raw().head(1, 0).tensor("t", {4}, 0, 8).pad(64).bytes(), "tensor t: offset: expected a multiple of 32, found 8"},
      {Raw().head(1, 0).tensor("t", {400}, 0, 0).pad(64).bytes(), "tensor t: 1600 bytes at offset 0 of the data are outside the file"},
      {Raw().head(1, 0).tensor("t", {4}, 0, huge).pad(64).bytes(), "are outside the file"},
      {Raw().head(2, 0).tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32).pad(64).bytes(), "tensor t is given twice"},
      {Raw().head(2, 0).tensor("t", {16}, 0, 0).tensor("u", {4}, 0, 32).pad(64).bytes(), "tensor u: overlaps tensor t"},
  };
  for (const Case& c : cases) {
    auto header = parse_gguf_header(to_bytes(c.bytes), c.bytes.size(), "f.gguf");
    ASSERT_FALSE(header.ok()) << c.expected;
    EXPECT_NE(header.error().message.find(c.expected), std::string::npos) << header.error().message;
    EXPECT_EQ(header.error().message.rfind("f.gguf: ", 0), 0u) << header.error().message;
    EXPECT_EQ(header.error().message.find('\n'), std::string::npos);
  }
}

TEST(Gguf, EveryCutAndManyChangesAreAnswered) {
  TestDirectory dir;
  GgufMetadata metadata = architecture("llama");
  metadata.add_u32("llama.attention.head_count", 2);
  metadata.add_texts("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "c"});
  write_test_gguf(dir.file("m.gguf"), metadata,
                  {{"blk.0.attn_q.weight", {4, 32}, &kQ80}, {"blk.0.ffn_gate_exps.weight", {2, 3, 32}, &kQ80}});
  auto whole = read_file(dir.file("m.gguf"), 1 << 20);
  ASSERT_TRUE(whole.ok());
  auto opened = open_gguf({dir.file("m.gguf")});
  ASSERT_TRUE(opened.ok());
  const GgufTensor& last = opened->headers[0].tensors.back();
  for (size_t n = 0; n < last.offset + last.bytes; n++) {  // only padding may be missing
    const std::string cut = whole->substr(0, n);
    EXPECT_FALSE(parse_gguf_header(to_bytes(cut), cut.size(), "f").ok()) << n;
  }
  std::mt19937 rng(5);
  int accepted = 0;
  for (int i = 0; i < 3000; i++) {
    std::string changed = *whole;
    for (int k = 0; k < 1 + i % 3; k++) changed[rng() % changed.size()] = static_cast<char>(rng());
    auto header = parse_gguf_header(to_bytes(changed), changed.size(), "f");
    if (!header.ok()) continue;
    GgufModel model;
    model.paths = {"f"};
    model.headers.push_back(std::move(*header));
    auto infos = gguf_tensor_infos(model);
    if (!infos.ok()) continue;
    accepted++;
    for (const TensorInfo& info : *infos) EXPECT_LE(info.offset + info.bytes, changed.size());
  }
  EXPECT_GT(accepted, 100);
}

TEST(Gguf, HeadersLongerThanTheFirstReadAreRead) {
  TestDirectory dir;
  GgufMetadata metadata = architecture("qwen2");
  metadata.add_texts("tokenizer.ggml.tokens", std::vector<std::string>(40000, std::string(100, 'x')));  // 4.3 MB
  write_test_gguf(dir.file("m.gguf"), metadata, {{"output_norm.weight", {4}}});
  auto model = open_gguf({dir.file("m.gguf")});
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->find("tokenizer.ggml.tokens")->text(39999), std::string(100, 'x'));
}

TEST(Gguf, WriterRefusesWhatReadersWould) {
  TestDirectory dir;
  auto refused = [&](std::vector<GgufTensorToWrite> tensors) {
    auto writer = GgufWriter::create(dir.file("w.gguf"), architecture("llama"), std::move(tensors));
    return writer.ok() ? std::string("accepted") : writer.error().message;
  };
  EXPECT_NE(refused({{"t", &kQ80, {3, 33}}}).find("the last a multiple of 32"), std::string::npos);
  EXPECT_NE(refused({{"t", &kF32, {3}}, {"t", &kF32, {3}}}).find("is given twice"), std::string::npos);
  EXPECT_NE(refused({{std::string(64, 'n'), &kF32, {3}}}).find("a name of 1 to 63 bytes"), std::string::npos);
  EXPECT_NE(refused({{"t", &kF32, {1, 1, 1, 1, 1}}}).find("1 to 4 dimensions"), std::string::npos);
  EXPECT_FALSE(file_exists(dir.file("w.gguf")));
}

}  // namespace
}  // namespace dg
