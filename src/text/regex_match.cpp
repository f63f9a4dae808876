// The matcher: one loop over instructions with an explicit stack of choices; no recursion.
#include <bit>
#include <cstring>

#include "text/regex.h"
#include "text/regex_program.h"

namespace dg {
namespace {

using namespace regex;

constexpr size_t kMaxFrames = size_t{1} << 20;
constexpr uint32_t kNoBarrier = UINT32_MAX;
constexpr int64_t kBudgetBase = 20000, kBudgetPerByte = 256;

enum FrameKind : uint32_t {
  kRunBack,   // a greedy run: `at` is its end, may shrink down to `extra`
  kRunOn,     // a lazy run of instruction pc: `at` is its end, `extra` more characters allowed
  kBranches,  // alternatives of instruction pc at `at`; `extra` is the mask still to try
  kBarrier,   // begin of a look-around or atomic group (instruction pc) at `at`; `extra` is the enclosing barrier
  kRegister,  // give register pc back its value `at`
};

// Reads a character of (normally well-formed) UTF-8; never beyond `end`.
inline char32_t take(const char*& p, const char* end) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  const ptrdiff_t left = end - p;
  if (u[0] < 0x80) {
    p++;
    return u[0];
  }
  if (u[0] < 0xe0 && left >= 2) {
    p += 2;
    return (static_cast<char32_t>(u[0] & 0x1f) << 6) | (u[1] & 0x3f);
  }
  if (u[0] < 0xf0 && left >= 3) {
    p += 3;
    return (static_cast<char32_t>(u[0] & 0x0f) << 12) | (static_cast<char32_t>(u[1] & 0x3f) << 6) | (u[2] & 0x3f);
  }
  if (left >= 4) {
    p += 4;
    char32_t c = (static_cast<char32_t>(u[0] & 7) << 18) | (static_cast<char32_t>(u[1] & 0x3f) << 12) |
                 (static_cast<char32_t>(u[2] & 0x3f) << 6) | (u[3] & 0x3f);
    return c <= unicode::kMaxCodePoint ? c : unicode::kReplacement;
  }
  p = end;
  return unicode::kReplacement;
}

inline const char* step_back(const char* p, const char* low) {
  do p--;
  while (p > low && (static_cast<unsigned char>(*p) & 0xc0) == 0x80);
  return p;
}

inline uint64_t mask_at(const RegexProgram& program, const char*& p, const char* end) {
  unsigned char c = static_cast<unsigned char>(*p);
  if (c < 0x80) {
    p++;
    return program.ascii_mask[c];
  }
  return program.class_mask[program.class_of(take(p, end))];
}

// Consumes up to `count` characters of the set; returns the new position and lowers `count` by what was taken.
inline const char* run_on(const RegexProgram& program, uint64_t bit, const char* p, const char* end, uint32_t& count) {
  if (count == kUnlimited) {
    for (;;) {
      while (p < end && static_cast<unsigned char>(*p) < 0x80 && (program.ascii_mask[static_cast<unsigned char>(*p)] & bit)) p++;
      if (p >= end || static_cast<unsigned char>(*p) < 0x80) return p;
      const char* next = p;
      if (!(program.class_mask[program.class_of(take(next, end))] & bit)) return p;
      p = next;
    }
  }
  for (; count > 0 && p < end; count--) {
    const char* next = p;
    if (!(mask_at(program, next, end) & bit)) break;
    p = next;
  }
  return p;
}

bool word_at(const char* p, const char* end) { return p < end && unicode::is_lone_word(take(p, end)); }
bool word_before(const char* p, const char* begin, const char* end) {
  if (p <= begin) return false;
  const char* q = step_back(p, begin);
  return unicode::is_lone_word(take(q, end));
}

bool holds(Assertion assertion, const char* p, const char* begin, const char* end) {
  switch (assertion) {
    case Assertion::kLineBegin: return p == begin || (p[-1] == '\n' && p != end);
    case Assertion::kLineEnd: return p == end || *p == '\n';
    case Assertion::kTextBegin: return p == begin;
    case Assertion::kTextEnd: return p == end;
    case Assertion::kTextEndOrNewline: return p == end || (p + 1 == end && *p == '\n');
    case Assertion::kWordBoundary: return word_before(p, begin, end) != word_at(p, end);
    case Assertion::kNotWordBoundary: return word_before(p, begin, end) == word_at(p, end);
  }
  return false;
}

}  // namespace

Regex::Finder::Finder(const Regex& regex, std::string_view text, Scratch& scratch)
    : program_(*regex.program_),
      scratch_(scratch),
      text_(text.data()),
      end_(text.data() + text.size()),
      next_(text.data()),
      budget_(kBudgetBase + kBudgetPerByte * static_cast<int64_t>(text.size())) {
  if (scratch_.registers.size() < program_.registers) scratch_.registers.resize(program_.registers);
}

bool Regex::Finder::next(Match& match) {
  const char* p = next_;
  while (p != nullptr && budget_ > 0) {
    if (!program_.can_be_empty) {
      for (;;) {
        while (p < end_ && static_cast<unsigned char>(*p) < 0x80 && !program_.ascii_starts[static_cast<unsigned char>(*p)]) p++;
        if (p >= end_) {
          next_ = nullptr;
          return false;
        }
        if (static_cast<unsigned char>(*p) < 0x80) break;
        const char* after = p;
        if (program_.class_starts[program_.class_of(take(after, end_))]) break;
        p = after;
      }
    }
    const char* stop = match_at(p);
    if (stop != nullptr && !(stop == p && p == last_match_end_)) {
      match = {static_cast<size_t>(p - text_), static_cast<size_t>(stop - text_)};
      last_match_end_ = next_ = stop;
      return true;
    }
    if (p >= end_) p = nullptr;
    else take(p, end_);
  }
  next_ = nullptr;
  return false;
}

const char* Regex::Finder::match_at(const char* p) {
  const RegexProgram& program = program_;
  const Inst* const code = program.code.data();
  const char* const end = end_;
  std::vector<Frame>& stack = scratch_.stack;
  stack.clear();
  uint32_t barrier = kNoBarrier;
  uint32_t pc = 0;
  int64_t budget = budget_;
  const char* result = nullptr;

  for (;;) {
    if (--budget < 0) break;
    const Inst& in = code[pc];
    switch (in.op) {
      case Op::kChar: {
        if (end - p < in.set || std::memcmp(p, &in.a, in.set) != 0) goto backtrack;
        p += in.set;
        pc++;
        continue;
      }
      case Op::kSet: {
        if (p >= end) goto backtrack;
        if (!(mask_at(program, p, end) & (uint64_t{1} << in.set))) goto backtrack;
        pc++;
        continue;
      }
      case Op::kRun: {
        const uint64_t bit = uint64_t{1} << in.set;
        const char* const start = p;
        uint32_t need = in.a;
        if (need > 0) {
          p = run_on(program, bit, p, end, need);
          if (need > 0) goto backtrack;
        }
        uint32_t more = in.b == kUnlimited ? kUnlimited : in.b - in.a;
        if (in.mode == Mode::kLazy) {
          if (stack.size() >= kMaxFrames) goto out;
          if (more > 0) stack.push_back({kRunOn, pc, p, more});
        } else if (more > 0) {
          const char* const low = p;
          p = run_on(program, bit, p, end, more);
          budget -= (p - start) >> 3;
          if (stack.size() >= kMaxFrames) goto out;
          if (in.mode == Mode::kGreedy && p > low) stack.push_back({kRunBack, pc + 1, p, reinterpret_cast<uintptr_t>(low)});
        }
        pc++;
        continue;
      }
      case Op::kJump: pc = in.a; continue;
      case Op::kAlt: {
        const Alternatives& alternatives = program.alternatives[in.a];
        uint32_t mask;
        if (p >= end) {
          mask = alternatives.viable_at_end;
        } else if (alternatives.viable.empty()) {
          mask = static_cast<uint32_t>((uint64_t{1} << alternatives.targets.size()) - 1);
        } else {
          unsigned char c = static_cast<unsigned char>(*p);
          const char* q = p;
          mask = alternatives.viable[c < 0x80 ? program.ascii_class[c] : program.class_of(take(q, end))];
        }
        if (mask == 0) goto backtrack;
        const uint32_t rest = mask & (mask - 1);
        if (rest) {
          if (stack.size() >= kMaxFrames) goto out;
          stack.push_back({kBranches, pc, p, rest});
        }
        pc = alternatives.targets[static_cast<size_t>(std::countr_zero(mask))];
        continue;
      }
      case Op::kLook: {
        const uint32_t outer = barrier;
        barrier = static_cast<uint32_t>(stack.size());
        if (stack.size() >= kMaxFrames) goto out;
        stack.push_back({kBarrier, pc, p, outer});
        const char* q = p;
        uint32_t back = in.b;
        for (; back > 0 && q > text_; back--) q = step_back(q, text_);
        if (back > 0) goto backtrack;
        p = q;
        pc++;
        continue;
      }
      case Op::kLookEnd: {
        const Frame frame = stack[barrier];
        stack.resize(barrier);
        barrier = static_cast<uint32_t>(frame.extra);
        if (code[frame.pc].negative) goto backtrack;
        p = frame.at;
        pc++;
        continue;
      }
      case Op::kAtomic: {
        if (stack.size() >= kMaxFrames) goto out;
        stack.push_back({kBarrier, pc, p, barrier});
        barrier = static_cast<uint32_t>(stack.size() - 1);
        pc++;
        continue;
      }
      case Op::kAtomicEnd: {
        const Frame frame = stack[barrier];
        stack.resize(barrier);
        barrier = static_cast<uint32_t>(frame.extra);
        pc++;
        continue;
      }
      case Op::kSaveAt: {
        if (stack.size() >= kMaxFrames) goto out;
        stack.push_back({kRegister, in.a, scratch_.registers[in.a], 0});
        scratch_.registers[in.a] = p;
        pc++;
        continue;
      }
      case Op::kLeaveIfEmpty: pc = scratch_.registers[in.a] == p ? in.b : pc + 1; continue;
      case Op::kAssert: {
        if (!holds(static_cast<Assertion>(in.set), p, text_, end)) goto backtrack;
        pc++;
        continue;
      }
      case Op::kMatch: result = p; goto out;
    }
  backtrack:
    for (;;) {
      if (stack.empty() || --budget < 0) goto out;
      Frame& frame = stack.back();
      if (frame.kind == kRunBack) {
        const char* low = reinterpret_cast<const char*>(frame.extra);
        p = frame.at = step_back(frame.at, low);
        pc = frame.pc;
        if (p <= low) stack.pop_back();
        break;
      }
      if (frame.kind == kBranches) {
        p = frame.at;
        const uint32_t mask = static_cast<uint32_t>(frame.extra), rest = mask & (mask - 1);
        pc = program.alternatives[code[frame.pc].a].targets[static_cast<size_t>(std::countr_zero(mask))];
        if (rest) frame.extra = rest;
        else stack.pop_back();
        break;
      }
      if (frame.kind == kRunOn) {
        const Inst& in = code[frame.pc];
        const char* q = frame.at;
        if (q < end && (mask_at(program, q, end) & (uint64_t{1} << in.set))) {
          p = frame.at = q;
          pc = frame.pc + 1;
          if (frame.extra != kUnlimited && --frame.extra == 0) stack.pop_back();
          break;
        }
      } else if (frame.kind == kRegister) {
        scratch_.registers[frame.pc] = frame.at;
      } else {  // kBarrier: the body has failed
        const Frame open = frame;
        stack.pop_back();
        barrier = static_cast<uint32_t>(open.extra);
        if (code[open.pc].op != Op::kLook || !code[open.pc].negative) continue;
        p = open.at;
        pc = code[open.pc].a;
        break;
      }
      stack.pop_back();
    }
  }
out:
  budget_ = budget;
  return result;
}

}  // namespace dg
