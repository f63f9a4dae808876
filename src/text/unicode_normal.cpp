// Boundaries: a code point is "inert" in a form when it stays itself, has combining class 0 and never joins with what
// stands before it. Normalising can then be done separately on both sides of it, so the slow path works on segments
// [inert code point] + (non-inert code points)*.
#include "text/unicode_normal.h"

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <vector>

#include "text/unicode.h"
#include "text/unicode_data.h"

namespace dg::unicode {
namespace {

constexpr char32_t kHangulBase = 0xac00, kLeadBase = 0x1100, kVowelBase = 0x1161, kTailBase = 0x11a7;
constexpr char32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;
constexpr size_t kCodePoints = kMaxCodePoint + 1;

struct Decomposition {
  uint32_t offset = 0;
  uint8_t units = 0;
};

struct Tables {
  std::unordered_map<char32_t, Decomposition> canonical, compatible;  // compatible: only where it differs
  std::unordered_map<uint64_t, char32_t> composition;
  std::vector<uint8_t> rank;   // of the canonical combining class, by code point
  std::vector<bool> inert[4];  // by NormalForm
};

uint64_t pair_key(char32_t a, char32_t b) { return (static_cast<uint64_t>(a) << 32) | b; }
bool is_syllable(char32_t c) { return c >= kHangulBase && c < kHangulBase + kSyllables; }

void append_decomposed(const Tables& t, char32_t c, bool compatible, std::vector<char32_t>& out) {
  if (is_syllable(c)) {
    char32_t index = c - kHangulBase;
    out.push_back(kLeadBase + index / (kVowels * kTails));
    out.push_back(kVowelBase + index % (kVowels * kTails) / kTails);
    if (index % kTails != 0) out.push_back(kTailBase + index % kTails);
    return;
  }
  const Decomposition* d = nullptr;
  if (compatible)
    if (auto it = t.compatible.find(c); it != t.compatible.end()) d = &it->second;
  if (!d)
    if (auto it = t.canonical.find(c); it != t.canonical.end()) d = &it->second;
  if (!d) {
    out.push_back(c);
    return;
  }
  for (uint32_t i = 0; i < d->units; i++) {
    char32_t unit = data::kDecompositionUnits[d->offset + i];
    if (unit >= 0xd800 && unit < 0xdc00 && i + 1u < d->units) {
      unit = 0x10000 + ((unit - 0xd800) << 10) + (data::kDecompositionUnits[d->offset + i + 1] - 0xdc00u);
      i++;
    }
    out.push_back(unit);
  }
}

const Tables& tables() {
  static const std::unique_ptr<Tables> built = [] {
    auto t = std::make_unique<Tables>();
    uint32_t offset = 0;
    for (size_t i = 0; i < data::kDecompositionsSize; i++) {
      uint32_t entry = data::kDecompositions[i];
      uint8_t units = static_cast<uint8_t>(entry >> 22);
      ((entry >> 21) & 1 ? t->compatible : t->canonical)[entry & 0x1fffff] = {offset, units};
      offset += units;
    }
    t->rank.assign(kCodePoints, 0);
    for (size_t i = 0; i < data::kCombiningRunsSize; i++) {
      size_t first = data::kCombiningRuns[i] >> 8;
      size_t end = i + 1 < data::kCombiningRunsSize ? data::kCombiningRuns[i + 1] >> 8 : kCodePoints;
      std::fill(t->rank.begin() + static_cast<long>(first), t->rank.begin() + static_cast<long>(end),
                static_cast<uint8_t>(data::kCombiningRuns[i] & 0xff));
    }
    for (auto& flags : t->inert) flags.assign(kCodePoints, true);
    auto& nfc = t->inert[0];
    auto& nfd = t->inert[1];
    auto& nfkc = t->inert[2];
    auto& nfkd = t->inert[3];
    for (size_t c = 0; c < kCodePoints; c++)
      if (t->rank[c] != 0) nfc[c] = nfd[c] = nfkc[c] = nfkd[c] = false;
    // A canonical decomposition is undone by composing unless it is excluded; composites count as inert there.
    for (const auto& [c, d] : t->canonical) nfc[c] = nfd[c] = nfkc[c] = nfkd[c] = false;
    for (size_t i = 0; i < data::kCompositionsSize; i++) {
      const data::Composition& pair = data::kCompositions[i];
      t->composition[pair_key(pair.first, pair.second)] = pair.composed;
      nfc[pair.composed] = nfkc[pair.composed] = t->rank[pair.composed] == 0;
    }
    for (size_t i = 0; i < data::kCompositionsSize; i++) nfc[data::kCompositions[i].second] = nfkc[data::kCompositions[i].second] = false;
    // A composite that begins with such a second part can join backwards too (Kirat Rai U+16D68).
    for (size_t i = 0; i < data::kCompositionsSize; i++) {
      std::vector<char32_t> parts;
      append_decomposed(*t, data::kCompositions[i].composed, false, parts);
      if (!nfc[parts[0]]) nfc[data::kCompositions[i].composed] = nfkc[data::kCompositions[i].composed] = false;
    }
    for (const auto& [c, d] : t->compatible) nfkc[c] = nfkd[c] = false;
    for (char32_t c = kVowelBase; c < kVowelBase + kVowels; c++) nfc[c] = nfkc[c] = false;
    for (char32_t c = kTailBase + 1; c < kTailBase + kTails; c++) nfc[c] = nfkc[c] = false;
    for (char32_t c = kHangulBase; c < kHangulBase + kSyllables; c++) nfd[c] = nfkd[c] = false;
    return t;
  }();
  return *built;
}

char32_t compose_pair(const Tables& t, char32_t a, char32_t b) {
  if (a >= kLeadBase && a < kLeadBase + kLeads && b >= kVowelBase && b < kVowelBase + kVowels)
    return kHangulBase + ((a - kLeadBase) * kVowels + (b - kVowelBase)) * kTails;
  if (is_syllable(a) && (a - kHangulBase) % kTails == 0 && b > kTailBase && b < kTailBase + kTails) return a + (b - kTailBase);
  auto it = t.composition.find(pair_key(a, b));
  return it == t.composition.end() ? 0 : it->second;
}

void reorder(const Tables& t, std::vector<char32_t>& text) {
  for (size_t i = 0; i < text.size();) {
    if (t.rank[text[i]] == 0) {
      i++;
      continue;
    }
    size_t end = i;
    while (end < text.size() && t.rank[text[end]] != 0) end++;
    std::stable_sort(text.begin() + static_cast<long>(i), text.begin() + static_cast<long>(end),
                     [&](char32_t a, char32_t b) { return t.rank[a] < t.rank[b]; });
    i = end;
  }
}

void compose(const Tables& t, std::vector<char32_t>& text) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  size_t out = 0, starter = kNone;
  int last_rank = -1;  // of what was kept after the starter; -1: nothing, so the next one is adjacent
  for (size_t i = 0; i < text.size(); i++) {
    char32_t c = text[i];
    int rank = t.rank[c];
    if (starter != kNone && last_rank < rank) {
      if (char32_t composed = compose_pair(t, text[starter], c)) {
        text[starter] = composed;
        continue;
      }
    }
    if (rank == 0) {
      starter = out;
      last_rank = -1;
    } else {
      last_rank = rank;
    }
    text[out++] = c;
  }
  text.resize(out);
}

}  // namespace

std::string normalize(std::string_view utf8, NormalForm form) {
  const Tables& t = tables();
  const std::vector<bool>& inert = t.inert[static_cast<int>(form)];
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  std::string out;
  out.reserve(utf8.size() + 16);
  std::vector<char32_t> segment;
  const char* at = utf8.data();
  const char* const end = at + utf8.size();
  const char* copied = at;    // everything before is in `out`
  const char* boundary = at;  // start of the last inert code point
  while (at < end) {
    if (static_cast<unsigned char>(*at) < 0x80) {  // ASCII is inert in every form
      boundary = at++;
      continue;
    }
    Decoded d = decode(at, end);
    if (inert[d.code]) {
      boundary = at;
      at += d.bytes;
      continue;
    }
    out.append(copied, boundary);
    segment.clear();
    for (at = boundary; at < end;) {
      Decoded e = decode(at, end);
      if (at != boundary && inert[e.code]) break;
      append_decomposed(t, e.code, compatible, segment);
      at += e.bytes;
    }
    reorder(t, segment);
    if (composes) compose(t, segment);
    for (char32_t c : segment) append_utf8(out, c);
    copied = boundary = at;
  }
  out.append(copied, end);
  return out;
}

}  // namespace dg::unicode
