// Joins the automata of the rules into one: numbers the nodes, cuts away what cannot reach the end of its rule, refuses left
// recursion, and ranks the rules so that the calls of one position can be worked off in one pass.
#include <fmt/core.h>

#include <algorithm>

#include "base/check.h"
#include "text/grammar_automaton.h"

namespace dg::grammar {

class Linker {
 public:
  Linker(const Ast& ast, RuleId root, size_t max_states)
      : ast_(ast), root_(root), nullable_(nullable_rules(ast)), budget_{.states = max_states, .work = 16 * max_states} {}

  Result<Automaton> run() {
    DG_TRY(build_rules());
    number_nodes();
    find_live();
    if (!live_[a_.entries_[root_]] && !nullable_[root_]) return input_error("the grammar matches no text at all");
    write_nodes();
    DG_TRY(rank_rules());
    DG_TRY(check_width());
    a_.root_ = root_;
    a_.root_nullable_ = nullable_[root_];
    return std::move(a_);
  }

 private:
  struct RuleCode {
    RuleId rule;
    Dfa dfa;
    uint32_t entry = 0;  // local node
    uint32_t base = 0;
  };
  struct Repeat {  // one per counted call
    uint32_t node, rule, exit;
  };
  struct FlatCall {
    uint32_t from;
    Call call;
  };

  Result<void> build_rules() {
    const size_t n = ast_.rules().size();
    std::vector<bool> queued(n, false);
    std::vector<RuleId> work{root_, kStringRule};
    queued[root_] = queued[kStringRule] = true;
    size_t symbols_done = 0;
    while (!work.empty()) {
      const RuleId rule = work.back();
      work.pop_back();
      RuleCode code{.rule = rule, .dfa = build_dfa(ast_, ast_.rules()[rule].expr, nullable_, symbols_, budget_)};
      if (budget_.failed()) return input_error(budget_.error);
      if (code.dfa.nodes[0].accept) {
        code.entry = static_cast<uint32_t>(code.dfa.nodes.size());
        Dfa::Node entry = code.dfa.nodes[0];
        entry.accept = false;
        code.dfa.nodes.push_back(std::move(entry));
      }
      rules_.push_back(std::move(code));
      for (; symbols_done < symbols_.size(); symbols_done++) {
        const Symbol& symbol = symbols_[static_cast<uint32_t>(symbols_done)];
        if (symbol.kind == ExprKind::kToken || queued[symbol.rule]) continue;
        queued[symbol.rule] = true;
        work.push_back(symbol.rule);
      }
    }
    CHECK(rules_[0].rule == kStringRule);
    return {};
  }

  void number_nodes() {
    a_.entries_.assign(ast_.rules().size(), Automaton::kNone);
    for (RuleCode& code : rules_) {
      code.base = total_;
      a_.entries_[code.rule] = code.base + code.entry;
      total_ += static_cast<uint32_t>(code.dfa.nodes.size());
    }
    a_.string_nodes_ = static_cast<uint32_t>(rules_[0].dfa.nodes.size());
    for (const RuleCode& code : rules_) {
      for (uint32_t i = 0; i < code.dfa.nodes.size(); i++) {
        for (auto [id, target] : code.dfa.nodes[i].symbols) {
          const Symbol& symbol = symbols_[id];
          if (symbol.kind == ExprKind::kToken) continue;
          FlatCall flat{code.base + i, {symbol.rule, code.base + target, 0, 0, false}};
          if (symbol.kind == ExprKind::kString) {
            flat.call.need = symbol.min;
            flat.call.left = symbol.max;
          } else if (symbol.kind == ExprKind::kCounted) {
            repeats_.push_back({total_, symbol.rule, flat.call.ret});
            flat.call = {symbol.rule, total_++, symbol.min, symbol.max, true};
          }
          calls_.push_back(flat);
        }
      }
    }
  }

  // live = the end of its rule can be reached, over rules that have an end. Linear: every edge is looked at once backwards.
  void find_live() {
    live_.assign(total_, false);
    std::vector<std::vector<uint32_t>> before(total_);    // byte and token edges, backwards
    std::vector<std::vector<uint32_t>> calls_to(total_);  // indexes into calls_ by their final return node
    std::vector<std::vector<uint32_t>> waiting(ast_.rules().size());
    std::vector<RuleId> rule_of_entry(total_, UINT32_MAX);
    std::vector<uint32_t> repeat_exit(total_, 0);
    std::vector<uint32_t> work;
    auto mark = [&](uint32_t node) {
      if (live_[node]) return;
      live_[node] = true;
      work.push_back(node);
    };
    for (const Repeat& repeat : repeats_) repeat_exit[repeat.node] = repeat.exit;
    for (const RuleCode& code : rules_) {
      rule_of_entry[code.base + code.entry] = code.rule;
      for (uint32_t i = 0; i < code.dfa.nodes.size(); i++) {
        const Dfa::Node& node = code.dfa.nodes[i];
        for (const ByteEdge& edge : node.edges) before[code.base + edge.target].push_back(code.base + i);
        for (auto [id, target] : node.symbols)
          if (symbols_[id].kind == ExprKind::kToken) before[code.base + target].push_back(code.base + i);
        if (node.accept) mark(code.base + i);
      }
    }
    for (uint32_t c = 0; c < calls_.size(); c++) {
      const Call& call = calls_[c].call;
      calls_to[call.counted ? repeat_exit[call.ret] : call.ret].push_back(c);
    }
    while (!work.empty()) {
      const uint32_t node = work.back();
      work.pop_back();
      for (uint32_t from : before[node]) mark(from);
      for (uint32_t c : calls_to[node]) {
        const Call& call = calls_[c].call;
        if (live_[a_.entries_[call.rule]]) mark(calls_[c].from);
        else waiting[call.rule].push_back(calls_[c].from);
      }
      if (rule_of_entry[node] == UINT32_MAX) continue;
      for (uint32_t from : waiting[rule_of_entry[node]]) mark(from);
      waiting[rule_of_entry[node]].clear();
    }
    for (const Repeat& repeat : repeats_) live_[repeat.node] = live_[repeat.exit] && live_[a_.entries_[repeat.rule]];
  }

  void begin_node(uint32_t exit) {
    a_.nodes_.push_back({static_cast<uint32_t>(a_.edges_.size()), static_cast<uint32_t>(a_.calls_.size()),
                         static_cast<uint32_t>(a_.tokens_.size()), exit, 0});
  }

  void write_nodes() {
    size_t next_call = 0;  // calls_ is in the order of the nodes
    for (const RuleCode& code : rules_) {
      for (uint32_t i = 0; i < code.dfa.nodes.size(); i++) {
        const Dfa::Node& node = code.dfa.nodes[i];
        begin_node(Automaton::kNone);
        int bytes = 0;
        const size_t edges_before = a_.edges_.size(), calls_before = a_.calls_.size(), tokens_before = a_.tokens_.size();
        for (const ByteEdge& edge : node.edges) {
          if (!live_[code.base + edge.target]) continue;
          a_.edges_.push_back({edge.first, edge.last, code.base + edge.target});
          bytes += edge.last - edge.first + 1;
        }
        for (; next_call < calls_.size() && calls_[next_call].from == code.base + i; next_call++) {
          const Call& call = calls_[next_call].call;
          if (live_[call.ret] && live_[a_.entries_[call.rule]]) a_.calls_.push_back(call);
        }
        for (auto [id, target] : node.symbols)
          if (symbols_[id].kind == ExprKind::kToken && live_[code.base + target])
            a_.tokens_.push_back({symbols_[id].token, code.base + target});
        uint8_t& flags = a_.nodes_.back().flags;
        const bool bare = a_.edges_.size() == edges_before && a_.calls_.size() == calls_before && a_.tokens_.size() == tokens_before;
        if (node.accept) flags |= bare ? kAccept | kPlainEnd : kAccept;
        if (bytes > 64) flags |= kWide;
      }
    }
    for (const Repeat& repeat : repeats_) {
      begin_node(repeat.exit);
      a_.nodes_.back().flags = kRepeatNode;
      a_.calls_.push_back({repeat.rule, static_cast<uint32_t>(a_.nodes_.size() - 1), 0, 0, true});
    }
    begin_node(Automaton::kNone);  // end of the last node's ranges
    const uint32_t entry = a_.entries_[kStringRule];
    a_.nodes_[entry].flags |= kStringEntry;
    a_.nodes_[a_.next(entry, '"')].flags |= kStringHead;
  }

  // Depth first over the calls at rule entries, without recursion; a rule is finished after all that it begins with.
  Result<void> rank_rules() {
    const size_t n = ast_.rules().size();
    a_.ranks_.assign(n, 0);
    enum : uint8_t { kNew, kOpen, kDone };
    std::vector<uint8_t> state(n, kNew);
    uint32_t finished = 0;
    for (const RuleCode& code : rules_) {
      if (state[code.rule] != kNew) continue;
      std::vector<std::pair<RuleId, size_t>> path{{code.rule, 0}};
      state[code.rule] = kOpen;
      while (!path.empty()) {
        const RuleId rule = path.back().first;
        const auto calls = a_.calls(a_.entries_[rule]);
        if (path.back().second == calls.size()) {
          state[rule] = kDone;
          a_.ranks_[rule] = static_cast<uint32_t>(n) - finished++;
          path.pop_back();
          continue;
        }
        const RuleId callee = calls[path.back().second++].rule;
        if (state[callee] == kOpen) {
          return input_error(
              fmt::format("left recursion: rule \"{}\" begins with itself (through \"{}\"); expected a rule that "
                          "consumes text before it calls itself",
                          ast_.rules()[callee].name, ast_.rules()[rule].name));
        }
        if (state[callee] == kNew) {
          state[callee] = kOpen;
          path.push_back({callee, 0});
        }
      }
    }
    return {};
  }

  // Alternatives that are rules of their own are tried side by side, byte for byte, so what they cost adds up.
  Result<void> check_width() {
    static constexpr size_t kMaxBytes = size_t{1} << 15;  // 160 alternatives that begin with any character
    std::vector<const RuleCode*> order;
    for (const RuleCode& code : rules_) order.push_back(&code);
    std::sort(order.begin(), order.end(), [&](const RuleCode* a, const RuleCode* b) { return a_.ranks_[a->rule] > a_.ranks_[b->rule]; });
    std::vector<size_t> width(ast_.rules().size(), 0);
    auto of_node = [&](uint32_t node) {
      size_t sum = 0;
      for (const ByteEdge& edge : a_.edges(node)) sum += edge.last - edge.first + size_t{1};
      for (const Call& call : a_.calls(node)) sum += width[call.rule];
      return sum;
    };
    for (const RuleCode* code : order) width[code->rule] = std::min(of_node(a_.entries_[code->rule]), 2 * kMaxBytes);
    for (const RuleCode* code : order) {
      for (uint32_t i = 0; i < code->dfa.nodes.size(); i++) {
        if (of_node(code->base + i) <= kMaxBytes) continue;
        return input_error(
            fmt::format("rule \"{}\" has too many alternatives at one place that begin with almost any text; expected "
                        "fewer, or one rule for all of them",
                        ast_.rules()[code->rule].name));
      }
    }
    return {};
  }

  const Ast& ast_;
  RuleId root_;
  std::vector<bool> nullable_;
  Budget budget_;
  SymbolTable symbols_;
  std::vector<RuleCode> rules_;
  uint32_t total_ = 0;
  std::vector<FlatCall> calls_;
  std::vector<Repeat> repeats_;
  std::vector<bool> live_;
  Automaton a_;
};

Result<Automaton> build_automaton(const Ast& ast, RuleId root, size_t max_states) { return Linker(ast, root, max_states).run(); }

}  // namespace dg::grammar
