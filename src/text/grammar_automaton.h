// A compiled grammar: one deterministic automaton per rule over bytes, rule calls and added tokens, all in flat arrays. A
// position in the text is a set of (node, stack of return nodes); grammar_stack.h walks it.
//
// Guarantees after build_automaton(): from every node the end of its rule can be reached (dead ends are cut away, and a
// grammar that derives nothing is an error), no rule begins by calling itself, directly or not, and rule entries never accept
// (an empty rule is skipped by its caller).
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/result.h"
#include "text/grammar_ast.h"

namespace dg::grammar {

struct ByteEdge {
  uint8_t first, last;
  uint32_t target;
};

// A transition on something that is not a byte.
struct Symbol {
  ExprKind kind;  // kRule, kCounted, kString, kToken
  RuleId rule = 0;
  uint32_t min = 0, max = 0;
  int32_t token = -1;
  auto key() const { return std::make_tuple(kind, rule, min, max, token); }
  bool operator<(const Symbol& other) const { return key() < other.key(); }
};

class SymbolTable {
 public:
  uint32_t intern(const Symbol& symbol);
  const Symbol& operator[](uint32_t id) const { return symbols_[id]; }
  size_t size() const { return symbols_.size(); }

 private:
  std::map<Symbol, uint32_t> ids_;
  std::vector<Symbol> symbols_;
};

struct Dfa {
  struct Node {
    std::vector<ByteEdge> edges;                         // sorted, disjoint
    std::vector<std::pair<uint32_t, uint32_t>> symbols;  // symbol, target
    bool accept = false;
  };
  std::vector<Node> nodes;  // 0 is the start
};

// What building may still spend; `error` is set when it is used up.
struct Budget {
  size_t states = 0;
  size_t work = 0;
  std::string error;
  bool spend_states(size_t n);
  bool spend_work(size_t n);
  bool failed() const { return !error.empty(); }
};

// Deterministic automaton of one expression. On failure budget.error says why and the result is empty.
Dfa build_dfa(const Ast& ast, ExprId expr, const std::vector<bool>& nullable, SymbolTable& symbols, Budget& budget);

// Byte sequences of a set of code points: edges(first, last, from, to) per step, state() for a fresh state.
class Utf8Sink {
 public:
  virtual ~Utf8Sink() = default;
  virtual uint32_t state() = 0;
  virtual void edge(uint32_t from, uint8_t first, uint8_t last, uint32_t to) = 0;
};
void add_utf8_ranges(Utf8Sink& sink, const unicode::Ranges& ranges, uint32_t from, uint32_t to);

struct Call {
  RuleId rule;
  uint32_t ret;         // node to go on at; a repeat node for counted calls
  uint32_t need, left;  // first values of the counters: of the string rule, or of the repeat node `ret`
  bool counted;
};

struct TokenEdge {
  int32_t id;
  uint32_t target;
};

enum NodeFlag : uint8_t {
  kAccept = 1,      // the rule may end here
  kPlainEnd = 2,    // ... and nothing else may happen
  kRepeatNode = 4,  // calls[0] is the repeated rule; `exit` follows when enough have come
  kStringEntry = 8,
  kStringHead = 16,  // inside a string, between characters
  kWide = 32,        // so many bytes may follow that token sets are computed per node (grammar_mask.cpp)
};

struct Node {
  uint32_t edges, calls, tokens;  // ends of the ranges that begin at the previous node's ends
  uint32_t exit;
  uint8_t flags;
};

class Automaton {
 public:
  std::span<const ByteEdge> edges(uint32_t n) const { return {edges_.data() + nodes_[n].edges, edges_.data() + nodes_[n + 1].edges}; }
  std::span<const Call> calls(uint32_t n) const { return {calls_.data() + nodes_[n].calls, calls_.data() + nodes_[n + 1].calls}; }
  std::span<const TokenEdge> tokens(uint32_t n) const { return {tokens_.data() + nodes_[n].tokens, tokens_.data() + nodes_[n + 1].tokens}; }
  bool has(uint32_t n, uint8_t flags) const { return (nodes_[n].flags & flags) != 0; }
  uint32_t exit(uint32_t n) const { return nodes_[n].exit; }
  uint32_t next(uint32_t n, uint8_t byte) const {  // kNone when the byte may not follow
    for (const ByteEdge& edge : edges(n))
      if (byte <= edge.last) return byte >= edge.first ? edge.target : kNone;
    return kNone;
  }
  uint32_t entry(RuleId rule) const { return entries_[rule]; }
  uint32_t rank(RuleId rule) const { return ranks_[rule]; }  // a rule's entry calls only rules of higher rank
  size_t size() const { return nodes_.size() - 1; }
  RuleId root() const { return root_; }
  bool root_nullable() const { return root_nullable_; }
  // Nodes of the string rule: [0, string_nodes()), the same in every automaton.
  uint32_t string_nodes() const { return string_nodes_; }
  static constexpr uint32_t kNone = UINT32_MAX;

 private:
  friend class Linker;
  std::vector<Node> nodes_;  // and one behind the last
  std::vector<ByteEdge> edges_;
  std::vector<Call> calls_;
  std::vector<TokenEdge> tokens_;
  std::vector<uint32_t> entries_, ranks_;
  RuleId root_ = 0;
  bool root_nullable_ = false;
  uint32_t string_nodes_ = 0;
};

Result<Automaton> build_automaton(const Ast& ast, RuleId root, size_t max_states);

}  // namespace dg::grammar
