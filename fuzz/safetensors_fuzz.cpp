// Any bytes as a safetensors file: the parser answers, and what it accepts holds every promise of io/safetensors.h.
#include <set>
#include <string_view>

#include "base/check.h"
#include "io/safetensors.h"
#include "io/shape_text.h"

namespace {

void check_header(const dg::SafetensorsHeader& header, uint64_t file_bytes) {
  uint64_t at = header.data_begin;
  std::set<std::string_view> names;
  for (const dg::TensorInfo& t : header.tensors) {
    CHECK(t.offset == at && t.bytes <= file_bytes - at) << t.name;
    CHECK(dg::tensor_bytes(t.dtype, t.shape) == t.bytes) << t.name;
    CHECK(names.insert(t.name).second) << t.name;
    for (unsigned char c : t.name) CHECK(c >= 0x20 && c != 0x7F);
    at += t.bytes;
  }
  CHECK(at == file_bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = std::as_bytes(std::span(data, size));
  auto check = [](const dg::Result<dg::SafetensorsHeader>& parsed, uint64_t file_bytes) {
    if (parsed.ok()) return check_header(*parsed, file_bytes);
    const std::string& message = parsed.error().message;
    CHECK(message.starts_with("f: ") && message.find('\n') == std::string::npos && message.size() < 2000) << message;
  };
  check(dg::parse_safetensors_header(bytes, size, "f"), size);
  // As read_safetensors_header does: only the begin of a larger file is in memory.
  check(dg::parse_safetensors_header(bytes, size + 1000, "f"), size + 1000);

  // Random bytes rarely make a length: once more with a true one, as if all of the input but its last 16 bytes were header.
  if (size < 16) return 0;
  std::vector<std::byte> framed(8);
  uint64_t header_bytes = size - 16;
  for (size_t i = 0; i < 8; i++) framed[i] = static_cast<std::byte>(header_bytes >> (8 * i));
  framed.insert(framed.end(), bytes.begin(), bytes.end());
  check(dg::parse_safetensors_header(framed, framed.size(), "f"), framed.size());
  return 0;
}
