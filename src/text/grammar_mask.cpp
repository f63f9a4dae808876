#include "text/grammar_mask.h"

#include <algorithm>
#include <array>
#include <tuple>

namespace dg::grammar {

namespace {

void set_bit(Mask& mask, int32_t id) { mask[static_cast<size_t>(id) >> 5] |= uint32_t{1} << (id & 31); }
void clear_bit(Mask& mask, int32_t id) { mask[static_cast<size_t>(id) >> 5] &= ~(uint32_t{1} << (id & 31)); }

// Transitions of the few nodes a walk meets again and again, as tables.
class HotNodes {
 public:
  explicit HotNodes(const Automaton& a) : a_(a), tables_(kSlots), owner_(kSlots, Automaton::kNone) {}
  uint32_t next(uint32_t node, uint8_t byte) {
    const size_t slot = node % kSlots;
    if (owner_[slot] != node) {
      owner_[slot] = node;
      tables_[slot].fill(Automaton::kNone);
      for (const ByteEdge& edge : a_.edges(node))
        for (int b = edge.first; b <= edge.last; b++) tables_[slot][static_cast<size_t>(b)] = edge.target;
    }
    return tables_[slot][byte];
  }

 private:
  static constexpr size_t kSlots = 64;
  const Automaton& a_;
  std::vector<std::array<uint32_t, 256>> tables_;
  std::vector<uint32_t> owner_;
};

}  // namespace

void MaskBuilder::set_tokens(uint32_t trie_node, Mask& mask) {
  for (int32_t id : v_.tokens_at(trie_node)) set_bit(mask, id);
}

void MaskBuilder::build(std::span<const Item> items, Mask& mask) {
  machine_.arena().release({});
  if (levels_.empty()) levels_.emplace_back();
  levels_[0].clear();
  for (const Item& item : items) {
    for (const TokenEdge& edge : a_.tokens(item.node))
      if (edge.id >= 0 && edge.id < v_.size()) set_bit(mask, edge.id);
    if (!a_.has(item.node, kWide)) levels_[0].push_back(item);
  }
  if (!levels_[0].empty()) walk(1, static_cast<uint32_t>(v_.trie().size()), 0, mask);
  std::vector<Item> wide;
  for (const Item& item : items)
    if (a_.has(item.node, kWide)) wide.push_back(item);
  auto key = [](const Item& item) { return std::make_tuple(item.node, item.need, item.left); };
  std::sort(wide.begin(), wide.end(), [&](const Item& a, const Item& b) { return key(a) < key(b); });
  for (size_t i = 0, end = 0; i < wide.size(); i = end) {
    while (end < wide.size() && key(wide[end]) == key(wide[i])) end++;
    add_wide({wide.data() + i, end - i}, mask);
  }
}

void MaskBuilder::walk(uint32_t begin, uint32_t end, size_t base, Mask& mask) {
  const auto trie = v_.trie();
  bool first[256] = {};
  for (const Item& item : levels_[0])
    for (const ByteEdge& edge : a_.edges(item.node)) std::fill(first + edge.first, first + edge.last + 1, true);
  if (marks_.empty()) marks_.emplace_back();
  marks_[0] = machine_.arena().mark();
  for (uint32_t i = begin; i < end;) {
    const auto& node = trie[i];
    const size_t depth = node.depth - base;
    if (depth == 1 && !first[node.byte]) {
      i = node.end;
      continue;
    }
    if (levels_.size() <= depth) {
      levels_.resize(depth + 1);
      marks_.resize(depth + 1);
    }
    machine_.arena().release(marks_[depth - 1]);
    bool can_end = false;
    if (!machine_.step(levels_[depth - 1], node.byte, levels_[depth], can_end)) {
      i = node.end;
      continue;
    }
    marks_[depth] = machine_.arena().mark();
    set_tokens(i, mask);
    i = levels_[depth].empty() ? node.end : i + 1;
  }
}

// A token that leaves the rule in the middle is found through the exits: there the stack says what follows.
// `same`: items at one node with equal counters, that is, one position under several stacks.
void MaskBuilder::add_wide(std::span<const Item> same, Mask& mask) {
  const Item& item = same[0];
  const auto set = node_set(item.node);
  const bool string = item.node < a_.string_nodes();
  if (string && item.left < v_.reach() && !set->characters.empty() && set->characters.front().first > item.left) {
    Mask accepted = set->accepted;
    for (auto [characters, id] : set->characters) {
      if (characters <= item.left) break;
      clear_bit(accepted, id);
    }
    for (size_t i = 0; i < mask.size(); i++) mask[i] |= accepted[i];
  } else {
    for (size_t i = 0; i < mask.size(); i++) mask[i] |= set->accepted[i];
  }
  const auto trie = v_.trie();
  for (size_t i = 0; i < set->exits.size();) {
    const uint32_t node = set->exits[i].node;
    machine_.arena().release({});
    bool can_end = false;
    levels_[0].clear();
    for (const Item& one : same) levels_[0].push_back({node, 0, 0, one.frame});
    machine_.close(levels_[0], can_end);
    // The node itself goes on inside the rule, which the set has covered.
    std::erase_if(levels_[0], [&](const Item& next) {
      return next.node == node && std::any_of(same.begin(), same.end(), [&](const Item& one) { return one.frame == next.frame; });
    });
    const bool goes_on = !levels_[0].empty();
    for (; i < set->exits.size() && set->exits[i].node == node; i++) {
      const NodeSet::Exit& exit = set->exits[i];
      if (string) {
        if (exit.characters < item.need || exit.characters > item.left) continue;
        set_tokens(exit.trie, mask);
      }
      if (goes_on) walk(exit.trie + 1, trie[exit.trie].end, trie[exit.trie].depth, mask);
    }
  }
}

std::shared_ptr<const NodeSet> MaskBuilder::node_set(uint32_t node) {
  NodeSetCache& cache = node < a_.string_nodes() ? string_sets_ : sets_;
  if (auto known = cache.find(node)) return known;
  auto made = compute_node_set(node);
  cache.insert(node, made, made->bytes());
  return made;
}

std::shared_ptr<const NodeSet> MaskBuilder::compute_node_set(uint32_t node) {
  auto set = std::make_shared<NodeSet>();
  set->accepted.assign(v_.words(), 0);
  const bool string = node < a_.string_nodes();
  const auto trie = v_.trie();
  struct Level {
    uint32_t node, characters;
  };
  std::vector<Level> levels{{node, 0}};
  HotNodes hot(a_);
  for (uint32_t i = 1; i < trie.size();) {
    const size_t depth = trie[i].depth;
    const Level from = levels[depth - 1];
    const uint32_t target = hot.next(from.node, trie[i].byte);
    if (target == Automaton::kNone) {
      i = trie[i].end;
      continue;
    }
    if (levels.size() <= depth) levels.resize(depth + 1);
    levels[depth] = {target, from.characters};
    if (string && a_.has(target, kAccept)) {  // the closing quote: the counters decide
      set->exits.push_back({target, i, from.characters});
      i = trie[i].end;
      continue;
    }
    const bool head = string && a_.has(target, kStringHead);
    if (head) levels[depth].characters++;
    const auto tokens = v_.tokens_at(i);
    for (int32_t id : tokens) {
      set_bit(set->accepted, id);
      if (string) set->characters.push_back({levels[depth].characters + (head ? 0 : 1), id});
    }
    if (!string && trie[i].end > i + 1 && (a_.has(target, kAccept) || !a_.calls(target).empty())) set->exits.push_back({target, i, 0});
    i++;
  }
  std::sort(set->exits.begin(), set->exits.end(), [](const auto& a, const auto& b) { return a.node < b.node; });
  std::stable_sort(set->characters.begin(), set->characters.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  return set;
}

}  // namespace dg::grammar
