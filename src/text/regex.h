// Regular expressions of published tokenizers: the Oniguruma (Ruby) dialect that Hugging Face tokenizers use, without
// captures and back-references. Compiled once to a small backtracking program over UTF-8 in which single-character
// loops are one instruction, alternatives are picked by the class of the next character, and loops that need not give
// anything back are recognised. The same result on every CPU.
//
// Supported: alternation; (...) and (?:...) (neither captures); (?imsx-imsx) and (?i:...); look-ahead (?= (?!; look-behind (?<= (?<!
// of fixed length per alternative; atomic (?>...); . and classes with ranges, negation, nesting, && and [:posix:];
// \p{..} \P{..} \p{^..} for general categories and scripts; \s \S \d \D \w \W \h \H \R \b \B \A \z \Z ^ $; \t \n \r \f \v \a \e \0 \xHH
// \x{H..} \uHHHH; * + ? {m} {m,} {m,n} {,n} greedy, lazy, and possessive for * + ? (as in Ruby, {m,n}+ repeats the interval).
//
// Bounded on hostile patterns and texts: compile() limits size and nesting; matching uses no recursion and a step
// budget linear in the text, and when that is used up the rest of the text counts as "no match", always the same way.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

struct RegexProgram;

class Regex {
 public:
  struct Match {
    size_t begin = 0, end = 0;  // byte offsets
  };
  struct Frame {
    uint32_t kind, pc;
    const char* at;
    uintptr_t extra;
  };
  // Working memory of one thread; reusable with any Regex.
  struct Scratch {
    std::vector<Frame> stack;
    std::vector<const char*> registers;
  };

  // The error names the byte position in the pattern and what was expected there.
  static Result<Regex> compile(std::string_view pattern);

  // Walks the non-overlapping matches in `text` from left to right, as Oniguruma's find_iter does: an empty match
  // directly after a match is skipped. `text` should be UTF-8 (anything else is memory-safe, but unspecified).
  class Finder {
   public:
    Finder(const Regex& regex, std::string_view text, Scratch& scratch);
    bool next(Match& match);
    bool exhausted() const { return budget_ <= 0; }  // the step budget ran out: matches may be missing

   private:
    const char* match_at(const char* at);  // end of the match that starts at `at`, or nullptr

    const RegexProgram& program_;
    Scratch& scratch_;
    const char* text_;
    const char* end_;
    const char* next_;
    const char* last_match_end_ = nullptr;
    int64_t budget_;
  };

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

 private:
  explicit Regex(std::unique_ptr<const RegexProgram> program);
  std::unique_ptr<const RegexProgram> program_;
};

}  // namespace dg
