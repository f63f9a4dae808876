// Bounds of numbers as automata that compare decimal texts digit by digit: exact, whatever the size. The text written is
// [-]digits[.digits] without exponent; so many digits follow the point that a reader's doubles still tell it from the bounds.
#include <fmt/core.h>

#include <algorithm>

#include "base/json.h"
#include "text/grammar_schema_parts.h"

namespace dg::grammar {
namespace {

constexpr size_t kMaxDigits = 40;   // of a bound, before or behind the point
constexpr size_t kFreeDigits = 15;  // integer digits where there is no bound: exact in every reader
constexpr uint64_t kMaxMultiple = 1000;

// |value| = digits.fraction; no leading zeros but "0", no trailing zeros in the fraction.
struct Decimal {
  bool negative = false;
  std::string digits = "0", fraction;
  bool inclusive = true;
  bool is_zero() const { return digits == "0" && fraction.empty(); }
};

int compare_magnitude(const Decimal& a, const Decimal& b) {
  if (a.digits.size() != b.digits.size()) return a.digits.size() < b.digits.size() ? -1 : 1;
  if (a.digits != b.digits) return a.digits < b.digits ? -1 : 1;
  return a.fraction == b.fraction ? 0 : a.fraction < b.fraction ? -1 : 1;  // a prefix is smaller, and is
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  const int order = compare_magnitude(a, b);
  return a.negative ? -order : order;
}

std::optional<Decimal> parse_decimal(std::string_view text) {
  Decimal d;
  if (text.starts_with("-")) d.negative = true, text.remove_prefix(1);
  std::string digits;
  int point = -1, exponent = 0;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '.') point = static_cast<int>(digits.size());
    else if (text[i] == 'e' || text[i] == 'E') {
      exponent = std::atoi(std::string(text.substr(i + 1)).c_str());
      break;
    } else {
      digits += text[i];
    }
  }
  if (point < 0) point = static_cast<int>(digits.size());
  point += exponent;
  if (point > 400 || point < -400) return std::nullopt;
  if (point < 0) digits.insert(0, static_cast<size_t>(-point), '0'), point = 0;
  if (point > static_cast<int>(digits.size())) digits.append(static_cast<size_t>(point) - digits.size(), '0');
  d.digits = digits.substr(0, static_cast<size_t>(point));
  d.fraction = digits.substr(static_cast<size_t>(point));
  d.digits.erase(0, std::min(d.digits.find_first_not_of('0'), d.digits.size()));
  if (d.digits.empty()) d.digits = "0";
  const size_t last = d.fraction.find_last_not_of('0');
  d.fraction.erase(last == std::string::npos ? 0 : last + 1);
  if (d.digits.size() > kMaxDigits || d.fraction.size() > kMaxDigits) return std::nullopt;
  if (d.is_zero()) d.negative = false;
  return d;
}

// Texts of the numbers >= 0 between two bounds. Digits are read from the left; `low` and `high` say whether the number still
// equals that bound's digits.
class Magnitudes {
 public:
  Magnitudes(Ast& ast, Decimal low, std::optional<Decimal> high, size_t fraction_digits)
      : ast_(ast), low_(std::move(low)), high_(std::move(high)), fraction_digits_(fraction_digits), digit_(ast.chars({{'0', '9'}})) {}

  ExprId build() {
    const size_t shortest = low_.digits.size();
    const size_t longest = high_ ? high_->digits.size() : std::max(kFreeDigits, shortest + 1);
    std::vector<ExprId> ways;
    for (size_t length = shortest; length <= longest; length++)
      ways.push_back(digits(0, length, length == shortest, high_ && length == longest));
    return ast_.alt(std::move(ways));
  }

 private:
  // Goes over the digits that may come next, grouped by what they leave equal.
  template <class Next>
  ExprId branch(char least, char low_digit, char high_digit, bool low, bool high, const Next& next) {
    std::vector<ExprId> ways;
    const char from = std::max(least, low ? low_digit : '0'), to = high ? high_digit : '9';
    for (char c = from; c <= to;) {
      const bool l = low && c == low_digit, h = high && c == high_digit;
      char last = c;
      if (!l && !h)
        while (last < to && !(high && last + 1 == high_digit)) last++;
      const ExprId rest = next(l, h);
      if (rest != ast_.nothing()) {
        ways.push_back(ast_.seq({ast_.chars({{static_cast<unsigned char>(c), static_cast<unsigned char>(last)}}), rest}));
      }
      c = static_cast<char>(last + 1);
    }
    return ast_.alt(std::move(ways));
  }

  ExprId digits(size_t at, size_t length, bool low, bool high) {
    if (at == length) return fraction_start(low, high);
    const char least = at == 0 && length > 1 ? '1' : '0';
    if (!low && !high) {
      const auto rest = static_cast<uint32_t>(length - at - 1);
      return ast_.seq(
          {ast_.chars({{static_cast<unsigned char>(least), '9'}}), ast_.repeat(digit_, rest, rest), fraction_start(false, false)});
    }
    return branch(least, low ? low_.digits[at] : '0', high ? high_->digits[at] : '9', low, high,
                  [&](bool l, bool h) { return digits(at + 1, length, l, h); });
  }

  static char digit_at(const std::string& fraction, size_t at) { return at < fraction.size() ? fraction[at] : '0'; }
  bool may_end(size_t at, bool low, bool high) const {
    const bool low_met = !low || (at >= low_.fraction.size() && low_.inclusive);
    const bool high_met = !high || at < high_->fraction.size() || high_->inclusive;
    return low_met && high_met;
  }
  ExprId fraction_start(bool low, bool high) {
    std::vector<ExprId> ways;
    if (may_end(0, low, high)) ways.push_back(ast_.empty());
    if (fraction_digits_ > 0) {
      const ExprId some = fraction_digit(0, low, high);
      if (some != ast_.nothing()) ways.push_back(ast_.seq({ast_.text("."), some}));
    }
    return ast_.alt(std::move(ways));
  }
  ExprId fraction_digit(size_t at, bool low, bool high) {  // one digit at least
    if (at == fraction_digits_) return ast_.nothing();
    if (!low && !high) return ast_.repeat(digit_, 1, static_cast<uint32_t>(fraction_digits_ - at));
    return branch('0', digit_at(low_.fraction, at), high ? digit_at(high_->fraction, at) : '9', low, high, [&](bool l, bool h) {
      std::vector<ExprId> ways;
      if (may_end(at + 1, l, h)) ways.push_back(ast_.empty());
      const ExprId more = fraction_digit(at + 1, l, h);
      if (more != ast_.nothing()) ways.push_back(more);
      return ast_.alt(std::move(ways));
    });
  }

  Ast& ast_;
  Decimal low_;
  std::optional<Decimal> high_;
  size_t fraction_digits_;
  ExprId digit_;
};

Result<std::optional<Decimal>> read_bound(const Json& schema, const char* keyword, bool inclusive, const std::string& path) {
  if (!schema.contains(keyword)) return std::optional<Decimal>();
  const Json& value = schema[keyword];
  if (!value.is_number()) return input_error(fmt::format("{}.{}: expected a number, found {}", path, keyword, json_excerpt(value)));
  const std::string text = value.is_number_float() ? fmt::format("{}", value.get<double>()) : value.dump();
  auto decimal = parse_decimal(text);
  if (!decimal) return input_error(fmt::format("{}.{}: expected a number of at most {} digits, found {}", path, keyword, kMaxDigits, text));
  decimal->inclusive = inclusive;
  return decimal;
}

// The stricter of two bounds on the same side; side +1: lower bounds.
std::optional<Decimal> stricter(const std::optional<Decimal>& a, const std::optional<Decimal>& b, int side) {
  if (!a || !b) return a ? a : b;
  const int order = compare(*a, *b) * side;
  if (order == 0) return a->inclusive ? b : a;
  return order > 0 ? a : b;
}

ExprId between(Ast& ast, const std::optional<Decimal>& low, const std::optional<Decimal>& high, bool integer) {
  size_t before = 1, behind = 0;
  for (const auto* bound : {&low, &high}) {
    if (!*bound) continue;
    before = std::max(before, (*bound)->digits.size());
    behind = std::max(behind, (*bound)->fraction.size());
  }
  // 15 significant digits are told apart by doubles.
  const size_t fraction_digits = integer ? 0 : std::max(behind, before < 15 ? 15 - before : 0);
  auto flipped = [](Decimal d) {
    d.negative = !d.negative;
    return d;
  };
  std::vector<ExprId> ways;
  const Decimal zero;
  if (!high || !high->negative) ways.push_back(Magnitudes(ast, low && !low->negative ? *low : zero, high, fraction_digits).build());
  if (!low || low->negative) {
    Decimal least = zero;  // "-0" is not written
    least.inclusive = false;
    if (high && high->negative) least = flipped(*high);
    std::optional<Decimal> most;
    if (low) most = flipped(*low);
    ways.push_back(ast.seq({ast.text("-"), Magnitudes(ast, least, most, fraction_digits).build()}));
  }
  return ast.alt(std::move(ways));
}

// Decimal texts of the multiples of n, with or without sign: an automaton over remainders.
ExprId multiples(Ast& ast, uint32_t n) {
  std::vector<Arc> arcs{{0, 2, ast.optional(ast.text("-"))}, {3, 1, ast.empty()}};
  for (char d = '0'; d <= '9'; d++) {
    const ExprId digit = ast.chars({{static_cast<unsigned char>(d), static_cast<unsigned char>(d)}});
    const auto value = static_cast<uint32_t>(d - '0');
    arcs.push_back({2, 3 + value % n, digit});
    for (uint32_t r = 0; r < n; r++) arcs.push_back({3 + r, 3 + (r * 10 + value) % n, digit});
  }
  return ast.graph(3 + n, std::move(arcs));
}

}  // namespace

Result<std::optional<ExprId>> number_with_bounds(Ast& ast, const Json& schema, bool integer, const std::string& path) {
  DG_ASSIGN(const auto minimum, read_bound(schema, "minimum", true, path));
  DG_ASSIGN(const auto above, read_bound(schema, "exclusiveMinimum", false, path));
  DG_ASSIGN(const auto maximum, read_bound(schema, "maximum", true, path));
  DG_ASSIGN(const auto below, read_bound(schema, "exclusiveMaximum", false, path));
  const auto low = stricter(minimum, above, 1), high = stricter(maximum, below, -1);
  std::optional<uint32_t> multiple;
  if (schema.contains("multipleOf")) {
    const Json& value = schema["multipleOf"];
    const double number = value.is_number() ? value.get<double>() : 0;
    if (!(number >= 1 && number <= kMaxMultiple) || number != static_cast<double>(static_cast<uint32_t>(number)))
      return input_error(fmt::format("{}.multipleOf: expected an integer from 1 to {}, found {}", path, kMaxMultiple, json_excerpt(value)));
    multiple = static_cast<uint32_t>(number);
    integer = true;
  }
  if (!low && !high && !multiple) return std::optional<ExprId>();
  if (low && high) {
    const int order = compare(*low, *high);
    if (order > 0 || (order == 0 && !(low->inclusive && high->inclusive)))
      return input_error(fmt::format("{}: expected a minimum below the maximum; no number satisfies both", path));
  }
  const ExprId range = between(ast, low, high, integer);
  return std::optional<ExprId>(multiple ? ast.both(range, multiples(ast, *multiple)) : range);
}

}  // namespace dg::grammar
