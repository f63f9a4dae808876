// From syntax tree to program. For every element the compiler knows what can follow it (Follow); a greedy loop over
// one set becomes possessive when what follows cannot begin inside the set or cannot fail at all, which makes the
// usual tokenizer patterns run without backtracking.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>

#include "text/regex.h"
#include "text/regex_program.h"

namespace dg {
namespace regex {
namespace {

using unicode::Range;
using unicode::Ranges;

constexpr size_t kMaxSets = 64;           // one bit each in class_mask
constexpr size_t kMaxDispatchSets = 256;  // first-character sets of alternatives; beyond: no dispatch
constexpr size_t kMaxDispatchTables = 64;
constexpr size_t kMaxInstructions = 1 << 15;
constexpr size_t kMaxWork = 1 << 18;  // nodes emitted, counting copies of repeated groups
constexpr uint32_t kMaxBranches = 32;
constexpr size_t kCodePoints = unicode::kMaxCodePoint + 1;

Ranges united(Ranges a, const Ranges& b) {
  a.insert(a.end(), b.begin(), b.end());
  unicode::tidy(a);
  return a;
}

struct Follow {
  bool cannot_fail = true;  // the continuation matches whatever comes
  bool nullable = true;     // it may succeed without consuming
  Ranges first;             // what it can begin with when it consumes
};

class Compiler {
 public:
  explicit Compiler(const Ast& ast) : ast_(ast), facts_(ast.nodes.size()) {}

  Result<std::unique_ptr<const RegexProgram>> run() {
    // Children stand before their parents, so one pass settles the facts of all nodes.
    for (size_t i = 0; i < ast_.nodes.size(); i++) facts_[i] = facts_of(ast_.nodes[i]);
    emit(ast_.root, Follow{});
    push({.op = Op::kMatch});
    if (!error_.empty()) return input_error(std::move(error_));
    const Facts& root = facts_[ast_.root];
    start_set_ = root.nullable ? Ranges{{0, unicode::kMaxCodePoint}} : root.first;
    program_->can_be_empty = root.nullable;
    partition();
    return std::unique_ptr<const RegexProgram>(std::move(program_));
  }

 private:
  struct Facts {
    bool nullable = false, cannot_fail = false;
    Ranges first;
  };
  struct Branch {               // of an Alternatives under construction
    std::optional<size_t> set;  // into dispatch_; absent: always viable
    bool at_end = true;
  };

  Facts facts_of(const Node& node) const {
    Facts f;
    auto child = [&](size_t i) -> const Facts& { return facts_[node.children[i]]; };
    switch (node.kind) {
      case Kind::kEmpty: f.nullable = f.cannot_fail = true; break;
      case Kind::kChar: f.first = {{node.code, node.code}}; break;
      case Kind::kSet: f.first = node.set; break;
      case Kind::kCat:
        f.nullable = f.cannot_fail = true;
        for (size_t i = 0; i < node.children.size(); i++) {
          if (f.nullable) f.first = united(std::move(f.first), child(i).first);
          f.nullable = f.nullable && child(i).nullable;
          f.cannot_fail = f.cannot_fail && child(i).cannot_fail;
        }
        break;
      case Kind::kAlt:
        for (size_t i = 0; i < node.children.size(); i++) {
          f.first.insert(f.first.end(), child(i).first.begin(), child(i).first.end());
          f.nullable = f.nullable || child(i).nullable;
          f.cannot_fail = f.cannot_fail || child(i).cannot_fail;
        }
        unicode::tidy(f.first);
        break;
      case Kind::kRepeat:
        f.first = node.max == 0 ? Ranges{} : child(0).first;
        f.nullable = node.min == 0 || child(0).nullable;
        f.cannot_fail = node.min == 0 || child(0).cannot_fail;
        break;
      case Kind::kAtomic: f = child(0); break;
      case Kind::kLook:
      case Kind::kAssert: f.nullable = true; break;
    }
    return f;
  }

  uint32_t here() const { return static_cast<uint32_t>(program_->code.size()); }
  uint32_t push(Inst inst) {
    if (program_->code.size() >= kMaxInstructions) fail("the expression is too large");
    else program_->code.push_back(inst);
    return here() - 1;
  }
  void fail(std::string_view what) {
    if (error_.empty()) error_ = fmt::format("regular expression: {}", what);
  }

  uint8_t set_index(const Ranges& set) {
    for (size_t i = 0; i < sets_.size(); i++)
      if (sets_[i] == set) return static_cast<uint8_t>(i);
    if (sets_.size() >= kMaxSets) {
      fail(fmt::format("more than {} different character classes", kMaxSets));
      return 0;
    }
    sets_.push_back(set);
    return static_cast<uint8_t>(sets_.size() - 1);
  }

  // What follows `node` when `follow` follows its parent's continuation.
  Follow before(const Facts& facts, const Follow& follow) const {
    Follow out;
    out.cannot_fail = facts.cannot_fail && follow.cannot_fail;
    out.nullable = facts.nullable && follow.nullable;
    out.first = facts.nullable ? united(facts.first, follow.first) : facts.first;
    return out;
  }

  void emit(uint32_t index, const Follow& follow) {
    if (!error_.empty()) return;
    if (++work_ > kMaxWork) return fail("the expression is too large");
    const Node& node = ast_.nodes[index];
    switch (node.kind) {
      case Kind::kEmpty: return;
      case Kind::kChar: emit_char(node.code); return;
      case Kind::kSet: push({.op = Op::kSet, .set = set_index(node.set)}); return;
      case Kind::kCat: emit_sequence(node, follow); return;
      case Kind::kAlt: emit_alternatives(node.children, follow); return;
      case Kind::kRepeat: emit_repeat(node, follow); return;
      case Kind::kAtomic: emit_atomic([&] { emit(node.children[0], Follow{}); }); return;
      case Kind::kLook: emit_look(node); return;
      case Kind::kAssert: push({.op = Op::kAssert, .set = static_cast<uint8_t>(node.assertion)}); return;
    }
  }

  void emit_char(char32_t c) {
    std::string bytes;
    unicode::append_utf8(bytes, c);
    Inst inst{.op = Op::kChar, .set = static_cast<uint8_t>(bytes.size())};
    std::memcpy(&inst.a, bytes.data(), bytes.size());  // compared by memcpy too, so byte order does not matter
    push(inst);
  }

  void emit_sequence(const Node& node, const Follow& follow) {
    std::vector<Follow> follows(node.children.size());
    Follow next = follow;
    for (size_t i = node.children.size(); i-- > 0;) {
      follows[i] = next;
      next = before(facts_[node.children[i]], next);
    }
    for (size_t i = 0; i < node.children.size(); i++) emit(node.children[i], follows[i]);
  }

  template <class Body>
  void emit_atomic(Body body) {
    push({.op = Op::kAtomic});
    body();
    push({.op = Op::kAtomicEnd});
  }

  uint32_t new_alternatives(const std::vector<Branch>& branches) {
    program_->alternatives.emplace_back();
    program_->alternatives.back().targets.resize(branches.size());
    branches_.push_back(branches);
    return static_cast<uint32_t>(program_->alternatives.size() - 1);
  }
  void set_target(uint32_t alternatives, size_t branch) { program_->alternatives[alternatives].targets[branch] = here(); }

  Branch branch_of(const Facts& facts, const Follow& follow) {
    Branch branch;
    branch.at_end = facts.nullable && follow.nullable;
    if (branch.at_end || dispatch_.size() >= kMaxDispatchSets) return branch;
    Ranges first = facts.nullable ? united(facts.first, follow.first) : facts.first;
    for (size_t i = 0; i < dispatch_.size() && !branch.set; i++)
      if (dispatch_[i] == first) branch.set = i;
    if (!branch.set) {
      branch.set = dispatch_.size();
      dispatch_.push_back(std::move(first));
    }
    return branch;
  }

  void emit_alternatives(const std::vector<uint32_t>& children, const Follow& follow) {
    std::vector<uint32_t> jumps;
    for (size_t done = 0; done < children.size();) {
      // More than 32 branches: the last target of a group leads to the next group.
      const size_t left = children.size() - done;
      const size_t n = left > kMaxBranches ? kMaxBranches - 1 : left;
      std::vector<Branch> branches;
      for (size_t i = 0; i < n; i++) branches.push_back(branch_of(facts_[children[done + i]], follow));
      if (n < left) branches.push_back({});
      uint32_t table = new_alternatives(branches);
      push({.op = Op::kAlt, .a = table});
      for (size_t i = 0; i < n; i++) {
        set_target(table, i);
        emit(children[done + i], follow);
        jumps.push_back(push({.op = Op::kJump}));
      }
      if (n < left) set_target(table, n);
      done += n;
      if (!error_.empty()) return;
    }
    for (uint32_t jump : jumps) program_->code[jump].a = here();
  }

  void emit_repeat(const Node& node, const Follow& follow) {
    if (node.max == 0) return;
    const Node& child = ast_.nodes[node.children[0]];
    if (child.kind == Kind::kChar || child.kind == Kind::kSet) {
      Ranges set = child.kind == Kind::kSet ? child.set : Ranges{{child.code, child.code}};
      Mode mode = node.mode;
      const bool disjoint = !follow.nullable && unicode::intersection(set, follow.first).empty();
      if (mode == Mode::kGreedy && (follow.cannot_fail || disjoint)) mode = Mode::kPossessive;
      push({.op = Op::kRun, .mode = mode, .set = set_index(set), .a = node.min, .b = node.max});
      return;
    }
    if (node.mode == Mode::kPossessive) emit_atomic([&] { emit_group_repeat(node, Mode::kGreedy, Follow{}); });
    else emit_group_repeat(node, node.mode, follow);
  }

  void emit_group_repeat(const Node& node, Mode mode, const Follow& follow) {
    const uint32_t body = node.children[0];
    const Facts& facts = facts_[body];
    Follow inner = follow;  // after one copy of the body: another one, or what follows
    inner.first = united(inner.first, facts.first);
    Follow required = inner;
    required.cannot_fail = false;
    for (uint32_t i = 0; i < node.min && error_.empty(); i++) emit(body, i + 1 == node.min ? inner : required);
    const Branch again = branch_of(facts, inner);
    const Branch leave = branch_of(Facts{.nullable = true, .cannot_fail = true, .first = {}}, follow);
    const size_t again_at = mode == Mode::kLazy ? 1 : 0;
    const std::vector<Branch> order = mode == Mode::kLazy ? std::vector<Branch>{leave, again} : std::vector<Branch>{again, leave};
    if (node.max == kUnlimited) {
      uint32_t table = new_alternatives(order);
      uint32_t loop = push({.op = Op::kAlt, .a = table});
      set_target(table, again_at);
      uint32_t check = 0, reg = program_->registers;
      if (facts.nullable) {
        program_->registers++;
        push({.op = Op::kSaveAt, .a = reg});
      }
      emit(body, inner);
      if (facts.nullable) check = push({.op = Op::kLeaveIfEmpty, .a = reg});
      push({.op = Op::kJump, .a = loop});
      set_target(table, 1 - again_at);
      if (facts.nullable && error_.empty()) program_->code[check].b = here();
      return;
    }
    std::vector<uint32_t> tables;
    for (uint32_t i = node.min; i < node.max && error_.empty(); i++) {
      tables.push_back(new_alternatives(order));
      push({.op = Op::kAlt, .a = tables.back()});
      set_target(tables.back(), again_at);
      emit(body, inner);
    }
    for (uint32_t table : tables) set_target(table, 1 - again_at);
  }

  // Number of characters that `index` always consumes; nullopt: it varies.
  std::optional<uint32_t> width(uint32_t index) const {
    const Node& node = ast_.nodes[index];
    switch (node.kind) {
      case Kind::kEmpty:
      case Kind::kLook:
      case Kind::kAssert: return 0;
      case Kind::kChar:
      case Kind::kSet: return 1;
      case Kind::kAtomic: return width(node.children[0]);
      case Kind::kRepeat: {
        auto w = width(node.children[0]);
        if (!w || node.min != node.max || static_cast<uint64_t>(*w) * node.min > 65535) return std::nullopt;
        return *w * node.min;
      }
      case Kind::kCat: {
        uint32_t sum = 0;
        for (uint32_t child : node.children) {
          auto w = width(child);
          if (!w || (sum += *w) > 65535) return std::nullopt;
        }
        return sum;
      }
      case Kind::kAlt: {
        auto first = width(node.children[0]);
        for (uint32_t child : node.children)
          if (width(child) != first) return std::nullopt;
        return first;
      }
    }
    return std::nullopt;
  }

  void emit_one_look(bool negative, uint32_t back, uint32_t body) {
    uint32_t look = push({.op = Op::kLook, .negative = negative, .b = back});
    emit(body, Follow{});
    push({.op = Op::kLookEnd});
    if (error_.empty()) program_->code[look].a = here();
  }

  void emit_look(const Node& node) {
    const uint32_t body = node.children[0];
    if (node.ahead) return emit_one_look(node.negative, 0, body);
    const std::vector<uint32_t> parts = ast_.nodes[body].kind == Kind::kAlt ? ast_.nodes[body].children : std::vector<uint32_t>{body};
    for (uint32_t part : parts)
      if (!width(part)) return fail("look-behind of variable length is not supported");
    if (node.negative) {  // none of them: one after the other
      for (uint32_t part : parts) emit_one_look(true, *width(part), part);
      return;
    }
    if (parts.size() > kMaxBranches) return fail(fmt::format("look-behind with more than {} alternatives", kMaxBranches));
    uint32_t table = new_alternatives(std::vector<Branch>(parts.size()));
    push({.op = Op::kAlt, .a = table});
    std::vector<uint32_t> jumps;
    for (size_t i = 0; i < parts.size(); i++) {
      set_target(table, i);
      emit_one_look(false, *width(parts[i]), parts[i]);
      jumps.push_back(push({.op = Op::kJump}));
    }
    if (error_.empty())
      for (uint32_t jump : jumps) program_->code[jump].a = here();
  }

  // Divides the code points into classes that no set of the program tells apart, and fills all tables by class.
  void partition() {
    std::vector<const Ranges*> all;
    for (const Ranges& set : sets_) all.push_back(&set);
    for (const Ranges& set : dispatch_) all.push_back(&set);
    all.push_back(&start_set_);
    std::vector<char32_t> borders{0, 128, static_cast<char32_t>(kCodePoints)};
    for (const Ranges* set : all)
      for (const Range& range : *set) {
        borders.push_back(range.first);
        borders.push_back(range.last + 1);
      }
    std::sort(borders.begin(), borders.end());
    borders.erase(std::unique(borders.begin(), borders.end()), borders.end());

    std::map<std::vector<bool>, uint16_t> ids;
    std::vector<std::vector<bool>> members;  // class -> set -> in it?
    std::vector<size_t> cursor(all.size(), 0);
    std::vector<uint16_t> class_of_span;  // span b reaches from borders[b] to borders[b + 1]
    for (size_t b = 0; b + 1 < borders.size(); b++) {
      std::vector<bool> in(all.size());
      for (size_t s = 0; s < all.size(); s++) {
        const Ranges& set = *all[s];
        while (cursor[s] < set.size() && set[cursor[s]].last < borders[b]) cursor[s]++;
        in[s] = cursor[s] < set.size() && set[cursor[s]].first <= borders[b];
      }
      auto [it, added] = ids.try_emplace(in, static_cast<uint16_t>(members.size()));
      if (added) members.push_back(std::move(in));
      class_of_span.push_back(it->second);
    }
    fill_class_masks(members);
    fill_class_tables(borders, class_of_span);
    fill_dispatch(members);
  }

  void fill_class_masks(const std::vector<std::vector<bool>>& members) {
    RegexProgram& p = *program_;
    p.class_mask.assign(members.size(), 0);
    p.class_starts.assign(members.size(), 0);
    for (size_t c = 0; c < members.size(); c++) {
      for (size_t s = 0; s < sets_.size(); s++)
        if (members[c][s]) p.class_mask[c] |= uint64_t{1} << s;
      p.class_starts[c] = members[c].back();
    }
  }

  void fill_class_tables(const std::vector<char32_t>& borders, const std::vector<uint16_t>& class_of_span) {
    RegexProgram& p = *program_;
    std::map<std::array<uint16_t, 128>, uint16_t> blocks;
    std::array<uint16_t, 128> content;
    size_t span = 0;
    int uniform_before = -1;  // class of the block before when it has only one: the next is mostly the same
    for (size_t at = 0; at < kCodePoints; at += 128) {
      while (borders[span + 1] <= at) span++;
      const bool uniform = borders[span + 1] >= at + 128;
      if (uniform && uniform_before == class_of_span[span]) {
        p.block.push_back(p.block.back());
        continue;
      }
      for (size_t i = 0, s = span; i < 128; i++) {
        while (borders[s + 1] <= at + i) s++;
        content[i] = class_of_span[s];
      }
      auto [it, added] = blocks.try_emplace(content, static_cast<uint16_t>(blocks.size()));
      if (added) p.block_classes.insert(p.block_classes.end(), content.begin(), content.end());
      p.block.push_back(it->second);
      uniform_before = uniform ? class_of_span[span] : -1;
    }
    for (size_t c = 0; c < 128; c++) {
      p.ascii_class[c] = p.block_classes[(static_cast<size_t>(p.block[0]) << 7) | c];
      p.ascii_mask[c] = p.class_mask[p.ascii_class[c]];
      p.ascii_starts[c] = p.class_starts[p.ascii_class[c]];
    }
  }

  void fill_dispatch(const std::vector<std::vector<bool>>& members) {
    for (size_t i = 0; i < program_->alternatives.size(); i++) {
      Alternatives& alternatives = program_->alternatives[i];
      for (size_t b = 0; b < branches_[i].size(); b++)
        if (branches_[i][b].at_end) alternatives.viable_at_end |= uint32_t{1} << b;
      if (i >= kMaxDispatchTables) continue;
      alternatives.viable.assign(members.size(), 0);
      for (size_t c = 0; c < members.size(); c++)
        for (size_t b = 0; b < branches_[i].size(); b++) {
          const auto& set = branches_[i][b].set;
          if (!set || members[c][sets_.size() + *set]) alternatives.viable[c] |= uint32_t{1} << b;
        }
    }
  }

  const Ast& ast_;
  std::vector<Facts> facts_;
  std::unique_ptr<RegexProgram> program_ = std::make_unique<RegexProgram>();
  std::vector<Ranges> sets_, dispatch_;
  std::vector<std::vector<Branch>> branches_;  // parallel to program_->alternatives
  Ranges start_set_;
  size_t work_ = 0;
  std::string error_;
};

}  // namespace
}  // namespace regex

Regex::Regex(std::unique_ptr<const RegexProgram> program) : program_(std::move(program)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::compile(std::string_view pattern) {
  DG_ASSIGN(regex::Ast ast, regex::parse(pattern));
  DG_ASSIGN(auto program, regex::Compiler(ast).run());
  return Regex(std::move(program));
}

}  // namespace dg
