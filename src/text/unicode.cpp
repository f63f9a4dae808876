#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>

#include "text/unicode_data.h"

namespace dg::unicode {
namespace {

constexpr std::array<std::string_view, 30> kCategoryShort = {"cn", "lu", "ll", "lt", "lm", "lo", "mn", "mc", "me", "nd",
                                                             "nl", "no", "pc", "pd", "ps", "pe", "pi", "pf", "po", "sm",
                                                             "sc", "sk", "so", "zs", "zl", "zp", "cc", "cf", "cs", "co"};
constexpr std::array<std::string_view, 30> kCategoryLong = {
    "unassigned",           "uppercaseletter",    "lowercaseletter", "titlecaseletter",  "modifierletter",     "otherletter",
    "nonspacingmark",       "spacingmark",        "enclosingmark",   "decimalnumber",    "letternumber",       "othernumber",
    "connectorpunctuation", "dashpunctuation",    "openpunctuation", "closepunctuation", "initialpunctuation", "finalpunctuation",
    "otherpunctuation",     "mathsymbol",         "currencysymbol",  "modifiersymbol",   "othersymbol",        "spaceseparator",
    "lineseparator",        "paragraphseparator", "control",         "format",           "surrogate",          "privateuse"};
struct Major {
  std::string_view name;
  char letter;
};
constexpr std::array<Major, 7> kMajors = {
    {{"letter", 'l'}, {"mark", 'm'}, {"number", 'n'}, {"punctuation", 'p'}, {"symbol", 's'}, {"separator", 'z'}, {"other", 'c'}}};

// Value of the run that holds `c` in a table of "first << 8 | value".
uint8_t run_value(const uint32_t* runs, size_t size, char32_t c) {
  const uint32_t* after = std::upper_bound(runs, runs + size, (static_cast<uint32_t>(c) << 8) | 0xff);
  return after == runs ? 0 : static_cast<uint8_t>(after[-1] & 0xff);
}

template <class Keep>
Ranges ranges_of_runs(const uint32_t* runs, size_t size, Keep keep) {
  Ranges out;
  for (size_t i = 0; i < size; i++) {
    if (!keep(static_cast<uint8_t>(runs[i] & 0xff))) continue;
    char32_t last = i + 1 < size ? (runs[i + 1] >> 8) - 1 : kMaxCodePoint;
    out.push_back({runs[i] >> 8, last});
  }
  tidy(out);
  return out;
}

Ranges ranges_of_pairs(const uint32_t* pairs, size_t size) {
  Ranges out;
  for (size_t i = 0; i + 1 < size; i += 2) out.push_back({pairs[i], pairs[i + 1]});
  return out;
}

bool in_pairs(const uint32_t* pairs, size_t size, char32_t c) {
  size_t low = 0, high = size / 2;
  while (low < high) {
    size_t mid = (low + high) / 2;
    if (c < pairs[2 * mid]) high = mid;
    else if (c > pairs[2 * mid + 1]) low = mid + 1;
    else return true;
  }
  return false;
}

char32_t map_case(const data::CaseRun* runs, size_t size, char32_t c) {
  const data::CaseRun* after =
      std::upper_bound(runs, runs + size, c, [](char32_t value, const data::CaseRun& run) { return value < run.first; });
  // Runs of stride 2 may interleave, so look at the two that can hold c.
  for (int back = 1; back <= 2 && after - back >= runs; back++) {
    const data::CaseRun& run = after[-back];
    if (c <= run.last && (c - run.first) % run.stride == 0) return static_cast<char32_t>(static_cast<int64_t>(c) + run.delta);
  }
  return c;
}

Ranges categories(std::string_view key) {
  return ranges_of_runs(data::kCategoryRuns, data::kCategoryRunsSize, [&](uint8_t value) {
    return value < kCategoryShort.size() && (kCategoryShort[value] == key || (key.size() == 1 && kCategoryShort[value][0] == key[0]));
  });
}

Ranges join(Ranges a, const Ranges& b) {
  a.insert(a.end(), b.begin(), b.end());
  tidy(a);
  return a;
}

Ranges word() {
  Ranges out = join(join(categories("l"), categories("m")), join(categories("nd"), categories("pc")));
  return join(std::move(out), ranges_of_pairs(data::kOtherWord, data::kOtherWordSize));
}

std::optional<Ranges> posix_property(std::string_view key) {
  const Ranges white = ranges_of_pairs(data::kWhiteSpace, data::kWhiteSpaceSize);
  const auto controls = [&] { return join(categories("cc"), join(categories("cn"), categories("cs"))); };
  if (key == "any") return Ranges{{0, kMaxCodePoint}};
  if (key == "ascii") return Ranges{{0, 0x7f}};
  if (key == "assigned") return complement(categories("cn"));
  if (key == "whitespace" || key == "space" || key == "wspace") return white;
  if (key == "word") return word();
  if (key == "digit") return categories("nd");
  if (key == "alpha" || key == "alphabetic")
    return join(categories("l"), join(categories("m"), ranges_of_pairs(data::kOtherWord, data::kOtherWordSize)));
  if (key == "alnum") return join(*posix_property("alpha"), categories("nd"));
  if (key == "upper" || key == "uppercase") return categories("lu");
  if (key == "lower" || key == "lowercase") return categories("ll");
  if (key == "punct") return join(categories("p"), categories("s"));
  if (key == "cntrl") return categories("cc");
  if (key == "blank") return join(categories("zs"), {{'\t', '\t'}});
  if (key == "xdigit") return Ranges{{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
  if (key == "graph") return complement(join(white, controls()));
  if (key == "print") return join(complement(join(white, controls())), categories("zs"));
  return std::nullopt;
}

// Groups of code points with the same simple case folding, the folded one included.
const std::unordered_map<char32_t, std::vector<char32_t>>& fold_groups() {
  static const auto groups = [] {
    std::unordered_map<char32_t, std::vector<char32_t>> out;
    for (size_t i = 0; i < data::kFoldRunsSize; i++) {
      const data::CaseRun& run = data::kFoldRuns[i];
      for (char32_t c = run.first; c <= run.last; c += run.stride) {
        auto& group = out[static_cast<char32_t>(static_cast<int64_t>(c) + run.delta)];
        if (group.empty()) group.push_back(static_cast<char32_t>(static_cast<int64_t>(c) + run.delta));
        group.push_back(c);
      }
    }
    return out;
  }();
  return groups;
}

}  // namespace

void tidy(Ranges& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
  size_t n = 0;
  for (const Range& range : ranges) {
    if (n > 0 && range.first <= ranges[n - 1].last + 1) ranges[n - 1].last = std::max(ranges[n - 1].last, range.last);
    else ranges[n++] = range;
  }
  ranges.resize(n);
}

Ranges complement(const Ranges& ranges) {
  Ranges out;
  char32_t next = 0;
  for (const Range& range : ranges) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kMaxCodePoint) out.push_back({next, kMaxCodePoint});
  return out;
}

Ranges intersection(const Ranges& a, const Ranges& b) {
  Ranges out;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    char32_t first = std::max(a[i].first, b[j].first), last = std::min(a[i].last, b[j].last);
    if (first <= last) out.push_back({first, last});
    if (a[i].last < b[j].last) i++;
    else j++;
  }
  return out;
}

bool contains(const Ranges& ranges, char32_t c) {
  auto after = std::upper_bound(ranges.begin(), ranges.end(), c, [](char32_t value, const Range& r) { return value < r.first; });
  return after != ranges.begin() && c <= after[-1].last;
}

Category category(char32_t c) { return static_cast<Category>(run_value(data::kCategoryRuns, data::kCategoryRunsSize, c)); }
bool is_white_space(char32_t c) { return in_pairs(data::kWhiteSpace, data::kWhiteSpaceSize, c); }

bool is_mark(char32_t c) {
  Category k = category(c);
  return k == Category::kMn || k == Category::kMc || k == Category::kMe;
}

bool is_word(char32_t c) {
  Category k = category(c);
  return (k >= Category::kLu && k <= Category::kNd) || k == Category::kPc || in_pairs(data::kOtherWord, data::kOtherWordSize, c);
}

constexpr std::array<char32_t, 6> kLatinNumbers = {0xb2, 0xb3, 0xb9, 0xbc, 0xbd, 0xbe};
bool is_lone_word(char32_t c) { return is_word(c) || std::find(kLatinNumbers.begin(), kLatinNumbers.end(), c) != kLatinNumbers.end(); }

Ranges lone_word() {
  Ranges out = word();
  for (char32_t c : kLatinNumbers) out.push_back({c, c});
  tidy(out);
  return out;
}

std::optional<Ranges> property(std::string_view name) {
  std::string key;
  for (char c : name) {
    if (c == '_' || c == '-' || c == ' ') continue;
    key += (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  }
  if (key.empty()) return std::nullopt;
  for (size_t i = 0; i < kCategoryShort.size(); i++)
    if (key == kCategoryShort[i] || key == kCategoryLong[i]) return categories(kCategoryShort[i]);
  for (const Major& major : kMajors)
    if (key == major.name || (key.size() == 1 && key[0] == major.letter)) return categories(std::string_view(&major.letter, 1));
  if (key == "lc" || key == "casedletter") return join(join(categories("lu"), categories("ll")), categories("lt"));
  if (auto ranges = posix_property(key)) return ranges;
  for (size_t i = 0; i < data::kScriptNamesSize; i++) {
    std::string script;
    for (const char* c = data::kScriptNames[i]; *c; c++)
      if (*c != '_') script += (*c >= 'A' && *c <= 'Z') ? static_cast<char>(*c - 'A' + 'a') : *c;
    if (script == key) return ranges_of_runs(data::kScriptRuns, data::kScriptRunsSize, [&](uint8_t value) { return value == i + 1; });
  }
  return std::nullopt;
}

char32_t fold_case(char32_t c) { return map_case(data::kFoldRuns, data::kFoldRunsSize, c); }

const std::vector<char32_t>& case_variants(char32_t c) {
  static const std::vector<char32_t> none;
  auto it = fold_groups().find(fold_case(c));
  return it == fold_groups().end() ? none : it->second;
}

void close_over_case(Ranges& ranges) {
  Ranges added;
  for (const auto& [folded, group] : fold_groups()) {
    if (std::none_of(group.begin(), group.end(), [&](char32_t c) { return contains(ranges, c); })) continue;
    for (char32_t c : group) added.push_back({c, c});
  }
  ranges.insert(ranges.end(), added.begin(), added.end());
  tidy(ranges);
}

void append_lower(std::string& out, char32_t c) {
  append_utf8(out, map_case(data::kLowerRuns, data::kLowerRunsSize, c));
  if (c == 0x130) append_utf8(out, 0x307);  // the one code point whose full lower case is longer
}

Decoded decode(const char* at, const char* end) {
  const auto* p = reinterpret_cast<const unsigned char*>(at);
  const size_t left = static_cast<size_t>(end - at);
  unsigned char lead = p[0];
  if (lead < 0x80) return {lead, 1, true};
  // Table 3-7 of the Unicode standard: the second byte's range depends on the lead.
  unsigned char low = 0x80, high = 0xbf;
  uint32_t need;
  char32_t code;
  if (lead >= 0xc2 && lead <= 0xdf) {
    need = 2;
    code = lead & 0x1f;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    need = 3;
    code = lead & 0x0f;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    need = 4;
    code = lead & 0x07;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return {kReplacement, 1, false};
  }
  for (uint32_t i = 1; i < need; i++) {
    if (i >= left || p[i] < low || p[i] > high) return {kReplacement, i, false};
    code = (code << 6) | (p[i] & 0x3f);
    low = 0x80;
    high = 0xbf;
  }
  return {code, need, true};
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  }
}

size_t first_invalid(std::string_view text) {
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    uint64_t word;
    while (end - at >= 8 && (std::memcpy(&word, at, 8), (word & 0x8080808080808080ull) == 0)) at += 8;
    if (at == end) break;
    const auto lead = static_cast<unsigned char>(*at);
    if (lead < 0x80) {
      at++;
      continue;
    }
    if (lead >= 0xc2 && lead <= 0xdf && end - at >= 2 && (static_cast<unsigned char>(at[1]) & 0xc0) == 0x80) {  // Latin and byte alphabets
      at += 2;
      continue;
    }
    Decoded d = decode(at, end);
    if (!d.valid) return static_cast<size_t>(at - text.data());
    at += d.bytes;
  }
  return std::string_view::npos;
}

std::string replace_invalid(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 16);
  while (!text.empty()) {
    size_t bad = std::min(first_invalid(text), text.size());
    out.append(text.substr(0, bad));
    text.remove_prefix(bad);
    if (text.empty()) break;
    Decoded d = decode(text.data(), text.data() + text.size());
    append_utf8(out, kReplacement);
    text.remove_prefix(d.bytes);
  }
  return out;
}

size_t complete_prefix(std::string_view text) {
  const size_t back_limit = std::min<size_t>(3, text.size());
  for (size_t back = 1; back <= back_limit; back++) {
    size_t at = text.size() - back;
    unsigned char c = static_cast<unsigned char>(text[at]);
    if ((c & 0xc0) == 0x80) continue;  // a continuation byte: its lead is further back
    if (c < 0xc0) break;               // ASCII: nothing is open
    uint32_t need = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (need <= back) break;
    // Open only if every byte so far is well formed: then decode() consumed all of them and ran out of input.
    Decoded d = decode(text.data() + at, text.data() + text.size());
    if (!d.valid && d.bytes == back && c >= 0xc2 && c <= 0xf4) return at;
    break;
  }
  return text.size();
}

}  // namespace dg::unicode
