// Any bytes as a GGUF file: parser, tensor names and tokenizer answer, and what they accept holds the promises of
// io/gguf.h and io/gguf_names.h.
#include <set>
#include <string_view>

#include "base/check.h"
#include "io/gguf_names.h"
#include "text/gguf_tokenizer.h"

namespace {

void check_message(const dg::Error& error) {
  CHECK(error.message.starts_with("f: ") && error.message.find('\n') == std::string::npos && error.message.size() < 4000) << error.message;
}

void check_tensors(const dg::GgufHeader& header, uint64_t file_bytes) {
  uint64_t at = header.data_begin;
  std::set<std::string_view> names;
  for (const dg::GgufTensor& t : header.tensors) {
    CHECK(t.offset >= at && t.bytes <= file_bytes && t.offset <= file_bytes - t.bytes) << t.name;
    CHECK(names.insert(t.name).second) << t.name;
    for (unsigned char c : t.name) CHECK(c >= 0x20 && c < 0x7F);
    at = t.offset + t.bytes;
  }
  for (const auto& [key, value] : header.metadata) {
    for (uint64_t i = 0; i < std::min<uint64_t>(value.count, 3); i++)
      (void)value.integer(i), (void)value.number(i), (void)value.boolean(i), (void)value.text(i);
    CHECK(value.describe().find('\n') == std::string::npos) << key;
  }
}

void check_tokenizer(const dg::GgufHeader& header) {
  const dg::GgufValue *tokens = header.find("tokenizer.ggml.tokens"), *merges = header.find("tokenizer.ggml.merges");
  const dg::GgufValue *types = header.find("tokenizer.ggml.token_type"), *bos = header.find("tokenizer.ggml.bos_token_id");
  if (!tokens || tokens->count > 5000) return;
  dg::GgufVocabulary v;
  v.pre = "qwen2";
  v.tokens.assign(tokens->strings.begin(), tokens->strings.end());
  if (merges) v.merges.assign(merges->strings.begin(), merges->strings.end());
  for (uint64_t i = 0; types && i < types->count; i++) v.types.push_back(static_cast<int32_t>(types->integer(i).value_or(0) & 7));
  if (bos) v.bos = bos->integer();
  auto tokenizer = dg::make_gguf_tokenizer(v, "f");
  if (tokenizer.ok()) (void)(*tokenizer)->decode((*tokenizer)->encode("Hello 世界 12"));
  else check_message(tokenizer.error());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = std::as_bytes(std::span(data, size));
  // As if the file went on behind the input, so that tensors have room.
  for (uint64_t file_bytes : {uint64_t{size}, uint64_t{size} + (1 << 20)}) {
    auto header = dg::parse_gguf_header({bytes.begin(), bytes.end()}, file_bytes, "f");
    if (!header.ok()) {
      check_message(header.error());
      continue;
    }
    check_tensors(*header, file_bytes);
    check_tokenizer(*header);
    dg::GgufModel model;
    model.paths = {"f"};
    model.headers.push_back(std::move(*header));
    auto infos = dg::gguf_tensor_infos(model);
    if (!infos.ok()) {
      check_message(infos.error());
      continue;
    }
    for (const dg::TensorInfo& info : *infos) {
      int64_t elements = 1;
      for (int64_t d : info.shape) CHECK(!__builtin_mul_overflow(elements, d, &elements)) << info.name;
      if (info.parts.empty()) CHECK(info.offset <= file_bytes && info.bytes <= file_bytes - info.offset) << info.name;
      for (const auto& part : info.parts) CHECK(part.offset <= file_bytes && part.bytes <= file_bytes - part.offset) << info.name;
    }
  }
  return 0;
}
