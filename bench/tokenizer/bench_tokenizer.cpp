// bench_tokenizer MODEL_DIRECTORY TEXT_FILE [ROUNDS [IDS_FILE]]
// Loads a tokenizer and encodes and decodes the text on one thread; prints one line of JSON. The first round starts with an
// empty piece cache ("cold"), the rest are listed in "encode_s". IDS_FILE receives the ids as little-endian int32.
#include <fmt/core.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/file.h"
#include "text/tokenizer.h"

namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string list(const std::vector<double>& values) {
  std::string out = "[";
  for (double v : values) out += fmt::format("{}{:.6f}", out.size() > 1 ? ", " : "", v);
  return out + "]";
}

int fail(const std::string& message) {
  fmt::print(stderr, "bench_tokenizer: {}\n", message);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) return fail("usage: bench_tokenizer MODEL_DIRECTORY TEXT_FILE [ROUNDS [IDS_FILE]]");
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  const double load_begin_s = now_s();
  auto tokenizer = dg::Tokenizer::load(argv[1]);
  if (!tokenizer.ok()) return fail(tokenizer.error().message);
  const double load_s = now_s() - load_begin_s;
  auto text = dg::read_file(argv[2], size_t{1} << 30);
  if (!text.ok()) return fail(text.error().message);
  std::vector<double> encode_s, decode_s;
  double cold_s = 0;
  std::vector<int32_t> ids;
  for (int round = 0; round <= rounds; round++) {
    const double begin_s = now_s();
    ids = (*tokenizer)->encode(*text, {.add_special = false});
    const double middle_s = now_s();
    const std::string back = (*tokenizer)->decode(ids);
    const double end_s = now_s();
    if (round == 0) {
      cold_s = middle_s - begin_s;
    } else {
      encode_s.push_back(middle_s - begin_s);
      decode_s.push_back(end_s - middle_s);
    }
  }
  if (argc > 4) {
    auto written = dg::write_file(argv[4], {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
    if (!written.ok()) return fail(written.error().message);
  }
  fmt::print("{{\"bytes\": {}, \"tokens\": {}, \"load_s\": {:.6f}, \"cold_s\": {:.6f}, \"encode_s\": {}, \"decode_s\": {}}}\n",
             text->size(), ids.size(), load_s, cold_s, list(encode_s), list(decode_s));
  return 0;
}
