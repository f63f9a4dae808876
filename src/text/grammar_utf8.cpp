// Sets of code points as byte automata. Ranges are cut where the encoded length or a leading byte changes; endings that
// several ranges share become one path, which keeps sets such as \p{L} (600 ranges) near a hundred states.
#include <map>
#include <tuple>

#include "text/grammar_automaton.h"

namespace dg::grammar {
namespace {

struct Utf8 {
  uint8_t bytes[4];
  int size;
};

Utf8 encode(char32_t c) {
  auto low = [](char32_t v) { return static_cast<uint8_t>(0x80 | (v & 0x3f)); };
  if (c < 0x80) return {{static_cast<uint8_t>(c)}, 1};
  if (c < 0x800) return {{static_cast<uint8_t>(0xc0 | (c >> 6)), low(c)}, 2};
  if (c < 0x10000) return {{static_cast<uint8_t>(0xe0 | (c >> 12)), low(c >> 6), low(c)}, 3};
  return {{static_cast<uint8_t>(0xf0 | (c >> 18)), low(c >> 12), low(c >> 6), low(c)}, 4};
}

class Utf8Builder {
 public:
  Utf8Builder(Utf8Sink& sink, uint32_t from, uint32_t to) : sink_(sink), from_(from), to_(to) {}

  void add(char32_t first, char32_t last) {
    static constexpr char32_t kLastOfLength[] = {0x7f, 0x7ff, 0xffff, unicode::kMaxCodePoint};
    for (char32_t end : kLastOfLength) {
      if (first > end) continue;
      add_same_length(first, std::min(last, end));
      if (last <= end) return;
      first = end + 1;
    }
  }

 private:
  void add_same_length(char32_t first, char32_t last) {
    const Utf8 low = encode(first);
    // Cut until all bytes but one leading pair span whole blocks of continuation bytes.
    for (int i = 1; i < low.size; i++) {
      const char32_t mask = (char32_t{1} << (6 * i)) - 1;
      if ((first & ~mask) == (last & ~mask)) continue;
      if ((first & mask) != 0) {
        add_same_length(first, first | mask);
        add_same_length((first | mask) + 1, last);
        return;
      }
      if ((last & mask) != mask) {
        add_same_length(first, (last & ~mask) - 1);
        add_same_length(last & ~mask, last);
        return;
      }
    }
    const Utf8 high = encode(last);
    uint32_t target = to_;
    for (int i = low.size - 1; i > 0; i--) target = tail(low.bytes[i], high.bytes[i], target);
    sink_.edge(from_, low.bytes[0], high.bytes[0], target);
  }

  uint32_t tail(uint8_t first, uint8_t last, uint32_t target) {
    auto [it, fresh] = tails_.try_emplace({first, last, target}, 0);
    if (fresh) {
      it->second = sink_.state();
      sink_.edge(it->second, first, last, target);
    }
    return it->second;
  }

  Utf8Sink& sink_;
  uint32_t from_, to_;
  std::map<std::tuple<uint8_t, uint8_t, uint32_t>, uint32_t> tails_;
};

}  // namespace

void add_utf8_ranges(Utf8Sink& sink, const unicode::Ranges& ranges, uint32_t from, uint32_t to) {
  Utf8Builder builder(sink, from, to);
  for (const unicode::Range& range : ranges) builder.add(range.first, range.last);
}

}  // namespace dg::grammar
