// Expression -> nondeterministic automaton -> deterministic one (subset construction). Counts are unrolled here; Budget
// bounds states and work, so that hostile counts and exponential subsets end in an error.
#include <algorithm>
#include <unordered_map>

#include "base/check.h"
#include "text/grammar_automaton.h"

namespace dg::grammar {

uint32_t SymbolTable::intern(const Symbol& symbol) {
  auto [it, fresh] = ids_.try_emplace(symbol, static_cast<uint32_t>(symbols_.size()));
  if (fresh) symbols_.push_back(symbol);
  return it->second;
}

bool Budget::spend_states(size_t n) {
  if (failed()) return false;
  if (n > states) {
    error = "the grammar needs too many states; expected smaller repetition counts, fewer alternatives or a simpler pattern";
    return false;
  }
  states -= n;
  return true;
}

bool Budget::spend_work(size_t n) {
  if (failed()) return false;
  if (n > work) {
    error = "the grammar takes too long to compile; expected a smaller or less ambiguous one";
    return false;
  }
  work -= n;
  return true;
}

namespace {

struct NfaEdge {
  uint32_t from, to;
  enum Kind : uint8_t { kEps, kByte, kSymbol } kind;
  uint8_t first, last;
  uint32_t symbol;
};

Dfa product(const Dfa& a, const Dfa& b, Budget& budget);
Dfa without_literals(const Dfa& a, const std::vector<std::string>& literals, Budget& budget);

class NfaBuilder : public Utf8Sink {
 public:
  NfaBuilder(const Ast& ast, const std::vector<bool>& nullable, SymbolTable& symbols, Budget& budget)
      : ast_(ast), nullable_(nullable), symbols_(symbols), budget_(budget) {}

  void build(ExprId id, uint32_t from, uint32_t to) {
    if (budget_.failed()) return;
    const Expr& expr = ast_.expr(id);
    switch (expr.kind) {
      case ExprKind::kNothing: return;
      case ExprKind::kEmpty: return eps(from, to);
      case ExprKind::kBytes: return bytes(expr.text, from, to);
      case ExprKind::kChars: return add_utf8_ranges(*this, expr.chars, from, to);
      case ExprKind::kSeq: return sequence(expr, from, to);
      case ExprKind::kAlt:
        for (ExprId child : expr.children) build(child, from, to);
        return;
      case ExprKind::kRepeat: return repeat(expr, from, to);
      case ExprKind::kRule:
        if (nullable_[expr.rule]) eps(from, to);
        return symbol({.kind = expr.kind, .rule = expr.rule}, from, to);
      case ExprKind::kCounted:
        if (expr.min == 0 || nullable_[expr.rule]) eps(from, to);
        return symbol({expr.kind, expr.rule, nullable_[expr.rule] ? 0 : expr.min, expr.max, -1}, from, to);
      case ExprKind::kString: return symbol({expr.kind, kStringRule, expr.min, expr.max, -1}, from, to);
      case ExprKind::kToken: return symbol({.kind = expr.kind, .token = expr.token}, from, to);
      case ExprKind::kGraph: return graph(expr, from, to);
      case ExprKind::kBoth: {
        const Dfa a = build_dfa(ast_, expr.children[0], nullable_, symbols_, budget_);
        const Dfa b = build_dfa(ast_, expr.children[1], nullable_, symbols_, budget_);
        return embed(product(a, b, budget_), from, to);
      }
      case ExprKind::kExcept:
        return embed(without_literals(build_dfa(ast_, expr.children[0], nullable_, symbols_, budget_), expr.literals, budget_), from, to);
    }
  }

  uint32_t state() override {
    budget_.spend_states(1);
    return states_++;
  }
  void edge(uint32_t from, uint8_t first, uint8_t last, uint32_t to) override {
    if (edges_.size() % 4 == 3) budget_.spend_states(1);  // large character sets have many edges and few states
    edges_.push_back({from, to, NfaEdge::kByte, first, last, 0});
  }

  uint32_t states() const { return states_; }
  std::vector<NfaEdge>& edges() { return edges_; }

 private:
  void eps(uint32_t from, uint32_t to) { edges_.push_back({from, to, NfaEdge::kEps, 0, 0, 0}); }
  void symbol(const Symbol& symbol, uint32_t from, uint32_t to) {
    edges_.push_back({from, to, NfaEdge::kSymbol, 0, 0, symbols_.intern(symbol)});
  }
  void bytes(const std::string& text, uint32_t from, uint32_t to) {
    for (size_t i = 0; i < text.size() && !budget_.failed(); i++) {
      const uint32_t next = i + 1 == text.size() ? to : state();
      const auto byte = static_cast<uint8_t>(text[i]);
      edge(from, byte, byte, next);
      from = next;
    }
  }
  void sequence(const Expr& expr, uint32_t from, uint32_t to) {
    for (size_t i = 0; i < expr.children.size() && !budget_.failed(); i++) {
      const uint32_t next = i + 1 == expr.children.size() ? to : state();
      build(expr.children[i], from, next);
      from = next;
    }
  }
  void repeat(const Expr& expr, uint32_t from, uint32_t to) {
    const ExprId child = expr.children[0];
    for (uint32_t i = 0; i < expr.min && !budget_.failed(); i++) {
      const uint32_t next = state();
      build(child, from, next);
      from = next;
    }
    if (expr.max == kUnlimited) {
      const uint32_t loop = state();
      eps(from, loop);
      build(child, loop, loop);
      eps(loop, to);
      return;
    }
    for (uint32_t i = expr.min; i < expr.max && !budget_.failed(); i++) {
      const uint32_t begin = state(), next = state();
      eps(from, begin);
      eps(from, to);
      build(child, begin, next);
      from = next;
    }
    eps(from, to);
  }
  void graph(const Expr& expr, uint32_t from, uint32_t to) {
    if (!budget_.spend_states(expr.min)) return;
    const uint32_t base = states_;
    states_ += expr.min;
    eps(from, base);
    eps(base + 1, to);
    for (const Arc& arc : expr.arcs) build(arc.expr, base + arc.from, base + arc.to);
  }
  void embed(const Dfa& dfa, uint32_t from, uint32_t to) {
    if (!budget_.spend_states(dfa.nodes.size()) || dfa.nodes.empty()) return;
    const uint32_t base = states_;
    states_ += static_cast<uint32_t>(dfa.nodes.size());
    eps(from, base);
    for (size_t i = 0; i < dfa.nodes.size(); i++) {
      const auto at = base + static_cast<uint32_t>(i);
      for (const ByteEdge& e : dfa.nodes[i].edges) edge(at, e.first, e.last, base + e.target);
      if (dfa.nodes[i].accept) eps(at, to);
    }
  }

  const Ast& ast_;
  const std::vector<bool>& nullable_;
  SymbolTable& symbols_;
  Budget& budget_;
  uint32_t states_ = 0;
  std::vector<NfaEdge> edges_;
};

using StateSet = std::vector<uint32_t>;

struct StateSetHash {
  size_t operator()(const StateSet& set) const {
    uint64_t h = set.size();
    for (uint32_t s : set) h = (h ^ s) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    return h;
  }
};

class Subsets {
 public:
  Subsets(std::vector<NfaEdge>& edges, uint32_t states, uint32_t final_state, Budget& budget)
      : edges_(edges), begin_(states + 1, 0), seen_(states, 0), final_(final_state), budget_(budget) {
    std::stable_sort(edges_.begin(), edges_.end(), [](const NfaEdge& a, const NfaEdge& b) { return a.from < b.from; });
    for (const NfaEdge& edge : edges_) begin_[edge.from + 1]++;
    for (uint32_t i = 0; i < states; i++) begin_[i + 1] += begin_[i];
  }

  Dfa run(uint32_t start) {
    node_of({start});
    for (uint32_t n = 0; n < dfa_.nodes.size() && !budget_.failed(); n++) expand(n);
    return budget_.failed() ? Dfa{} : std::move(dfa_);
  }

 private:
  // The states reached without input, those that matter only: with an edge that consumes something, or the final one.
  StateSet closure(const StateSet& from) {
    StateSet out, work;
    mark_++;
    for (uint32_t s : from) {
      if (seen_[s] == mark_) continue;
      seen_[s] = mark_;
      work.push_back(s);
    }
    while (!work.empty()) {
      const uint32_t s = work.back();
      work.pop_back();
      bool consumes = s == final_;
      for (uint32_t e = begin_[s]; e < begin_[s + 1]; e++) {
        if (edges_[e].kind != NfaEdge::kEps) {
          consumes = true;
        } else if (seen_[edges_[e].to] != mark_) {
          seen_[edges_[e].to] = mark_;
          work.push_back(edges_[e].to);
        }
      }
      if (consumes) out.push_back(s);
      budget_.spend_work(1 + begin_[s + 1] - begin_[s]);
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  uint32_t node_of(const StateSet& from) {
    StateSet set = closure(from);
    auto [it, fresh] = ids_.try_emplace(std::move(set), static_cast<uint32_t>(dfa_.nodes.size()));
    if (fresh && budget_.spend_states(1)) {
      dfa_.nodes.emplace_back();
      dfa_.nodes.back().accept = std::binary_search(it->first.begin(), it->first.end(), final_);
      sets_.push_back(&it->first);
    }
    return it->second;
  }

  void expand(uint32_t n) {
    std::vector<const NfaEdge*> bytes;
    std::map<uint32_t, StateSet> symbols;
    bool cut[257] = {};
    for (uint32_t s : *sets_[n]) {
      for (uint32_t e = begin_[s]; e < begin_[s + 1]; e++) {
        const NfaEdge& edge = edges_[e];
        if (edge.kind == NfaEdge::kByte) {
          bytes.push_back(&edge);
          cut[edge.first] = cut[edge.last + 1] = true;
        } else if (edge.kind == NfaEdge::kSymbol) {
          symbols[edge.symbol].push_back(edge.to);
        }
      }
    }
    std::sort(bytes.begin(), bytes.end(), [](const NfaEdge* a, const NfaEdge* b) { return a->first < b->first; });
    std::vector<const NfaEdge*> open;
    size_t next = 0;
    for (int first = 0; first < 256 && !budget_.failed();) {
      int last = first;
      while (last < 255 && !cut[last + 1]) last++;
      for (; next < bytes.size() && bytes[next]->first <= first; next++) open.push_back(bytes[next]);
      std::erase_if(open, [&](const NfaEdge* e) { return e->last < first; });
      if (!open.empty()) {
        StateSet targets;
        for (const NfaEdge* e : open) targets.push_back(e->to);
        add_edge(n, static_cast<uint8_t>(first), static_cast<uint8_t>(last), node_of(targets));
      }
      budget_.spend_work(open.size() + 1);
      first = last + 1;
    }
    for (const auto& [symbol, targets] : symbols) {
      if (budget_.failed()) return;
      const uint32_t target = node_of(targets);
      if (!budget_.failed()) dfa_.nodes[n].symbols.push_back({symbol, target});
    }
  }

  void add_edge(uint32_t n, uint8_t first, uint8_t last, uint32_t target) {
    if (budget_.failed()) return;
    auto& out = dfa_.nodes[n].edges;
    if (!out.empty() && out.back().target == target && out.back().last + 1 == first) out.back().last = last;
    else out.push_back({first, last, target});
  }

  std::vector<NfaEdge>& edges_;
  std::vector<uint32_t> begin_;
  std::vector<uint32_t> seen_;
  uint32_t mark_ = 0;
  uint32_t final_;
  Budget& budget_;
  Dfa dfa_;
  std::unordered_map<StateSet, uint32_t, StateSetHash> ids_;
  std::vector<const StateSet*> sets_;  // keys of ids_, which stay where they are
};

// Nodes of a product automaton, numbered as they are met.
class Pairs {
 public:
  explicit Pairs(Budget& budget) : budget_(budget) {}
  uint32_t node_of(uint32_t a, uint32_t b, Dfa& dfa) {
    auto [it, fresh] = ids_.try_emplace(uint64_t{a} << 32 | b, static_cast<uint32_t>(dfa.nodes.size()));
    if (fresh) {
      budget_.spend_states(1);
      dfa.nodes.emplace_back();
      order.push_back({a, b});
    }
    return it->second;
  }
  std::vector<std::pair<uint32_t, uint32_t>> order;

 private:
  Budget& budget_;
  std::unordered_map<uint64_t, uint32_t> ids_;
};

Dfa product(const Dfa& a, const Dfa& b, Budget& budget) {
  Dfa dfa;
  if (a.nodes.empty() || b.nodes.empty()) return dfa;
  Pairs pairs(budget);
  pairs.node_of(0, 0, dfa);
  for (size_t n = 0; n < dfa.nodes.size() && !budget.failed(); n++) {
    const auto [i, j] = pairs.order[n];
    dfa.nodes[n].accept = a.nodes[i].accept && b.nodes[j].accept;
    for (const ByteEdge& x : a.nodes[i].edges) {
      for (const ByteEdge& y : b.nodes[j].edges) {
        const uint8_t first = std::max(x.first, y.first), last = std::min(x.last, y.last);
        if (first > last) continue;
        const uint32_t target = pairs.node_of(x.target, y.target, dfa);
        dfa.nodes[n].edges.push_back({first, last, target});
      }
    }
    budget.spend_work(1 + a.nodes[i].edges.size() * b.nodes[j].edges.size());
  }
  return dfa;
}

// Runs beside a trie of the literals; second state 0 = off the trie, k + 1 = its node k.
Dfa without_literals(const Dfa& a, const std::vector<std::string>& literals, Budget& budget) {
  Dfa dfa;
  if (a.nodes.empty()) return dfa;
  struct TrieNode {
    std::map<uint8_t, uint32_t> children;
    bool end = false;
  };
  std::vector<TrieNode> trie(1);
  for (const std::string& literal : literals) {
    uint32_t at = 0;
    for (char c : literal) {
      auto [it, fresh] = trie[at].children.try_emplace(static_cast<uint8_t>(c), static_cast<uint32_t>(trie.size()));
      at = it->second;
      if (fresh) trie.emplace_back();
    }
    trie[at].end = true;
  }
  Pairs pairs(budget);
  pairs.node_of(0, 1, dfa);
  for (size_t n = 0; n < dfa.nodes.size() && !budget.failed(); n++) {
    const auto [i, j] = pairs.order[n];
    dfa.nodes[n].accept = a.nodes[i].accept && (j == 0 || !trie[j - 1].end);
    for (const ByteEdge& x : a.nodes[i].edges) {
      int first = x.first;
      auto add = [&](int from, int last, uint32_t trie_state) {
        if (from > last) return;
        const uint32_t target = pairs.node_of(x.target, trie_state, dfa);
        dfa.nodes[n].edges.push_back({static_cast<uint8_t>(from), static_cast<uint8_t>(last), target});
      };
      if (j != 0) {
        for (auto it = trie[j - 1].children.lower_bound(x.first); it != trie[j - 1].children.end() && it->first <= x.last; ++it) {
          add(first, it->first - 1, 0);
          add(it->first, it->first, it->second + 1);
          first = it->first + 1;
        }
      }
      add(first, x.last, 0);
      budget.spend_work(1);
    }
  }
  return dfa;
}

}  // namespace

Dfa build_dfa(const Ast& ast, ExprId expr, const std::vector<bool>& nullable, SymbolTable& symbols, Budget& budget) {
  NfaBuilder builder(ast, nullable, symbols, budget);
  const uint32_t start = builder.state(), end = builder.state();
  builder.build(expr, start, end);
  if (budget.failed()) return {};
  return Subsets(builder.edges(), builder.states(), end, budget).run(start);
}

}  // namespace dg::grammar
