// The compiled form of a Regex: shared by regex_compile.cpp (writes it) and regex_match.cpp (runs it).
#pragma once
#include <cstdint>
#include <vector>

#include "text/regex_ast.h"

namespace dg {

namespace regex {

enum class Op : uint8_t {
  kChar,     // the UTF-8 bytes in `a` (little-endian), `set` of them
  kSet,      // one character of set `set`
  kRun,      // a..b characters of set `set`, by `mode`
  kJump,     // to a
  kAlt,      // alternatives a of Program::alternatives
  kLook,     // look-around: body follows; `a` is what comes after it; `negative`; steps back b characters first
  kLookEnd,  // the body of a kLook matched
  kAtomic,   // atomic group: body follows
  kAtomicEnd,
  kSaveAt,        // register a = position
  kLeaveIfEmpty,  // to b when nothing was consumed since kSaveAt of register a
  kAssert,        // `set` holds the Assertion
  kMatch,
};

struct Inst {
  Op op;
  Mode mode = Mode::kGreedy;
  uint8_t set = 0;
  bool negative = false;
  uint32_t a = 0, b = 0;
};

// Branch i is worth trying before a character of class c when viable[c] has bit i.
struct Alternatives {
  std::vector<uint32_t> targets;  // at most 32
  std::vector<uint32_t> viable;   // by class; empty: try all
  uint32_t viable_at_end = 0;
};

}  // namespace regex

struct RegexProgram {
  std::vector<regex::Inst> code;
  std::vector<regex::Alternatives> alternatives;
  uint32_t registers = 0;

  // Characters fall into classes with equal membership in all sets of the program (two-level table).
  uint16_t ascii_class[128];
  uint64_t ascii_mask[128];             // = class_mask[ascii_class[c]]
  std::vector<uint16_t> block;          // code point >> 7 -> block
  std::vector<uint16_t> block_classes;  // block << 7 | low bits -> class
  std::vector<uint64_t> class_mask;     // class -> bit per set
  std::vector<uint8_t> class_starts;    // class -> whether a match can begin with it
  uint8_t ascii_starts[128];
  bool can_be_empty = false;  // a match may consume nothing: every position is a candidate

  uint32_t class_of(char32_t c) const {
    return c < 128 ? ascii_class[c] : block_classes[(static_cast<uint32_t>(block[c >> 7]) << 7) | (c & 127)];
  }
};

}  // namespace dg
