#include "text/grammar_stack.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>

#include "base/check.h"

namespace dg::grammar {

uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t h = (a ^ 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 31) ^ b) * 0x94d049bb133111ebu;
  return h ^ (h >> 29);
}

namespace {

static_assert(sizeof(Frame) % alignof(const Frame*) == 0);

size_t frame_bytes(size_t parents) { return sizeof(Frame) + parents * sizeof(const Frame*); }

void fill_parents(Frame* frame, std::span<const Frame* const> parents) {
  if (!parents.empty()) std::memcpy(reinterpret_cast<std::byte*>(frame + 1), parents.data(), parents.size_bytes());
}

// Drops one reference, and in turn those of the frames that die with it.
void drop_frame(const Frame* frame) {
  if (!frame || frame->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  std::vector<const Frame*> dead{frame};
  while (!dead.empty()) {
    const Frame* at = dead.back();
    dead.pop_back();
    for (const Frame* parent : at->parents())
      if (parent && parent->references.fetch_sub(1, std::memory_order_acq_rel) == 1) dead.push_back(parent);
    at->~Frame();
    ::operator delete(const_cast<Frame*>(at));
  }
}

// Copies arena frames to the heap, each with the references that its copies hold. Parents are older than their children, so
// an explicit stack ends.
class FrameKeeper {
 public:
  const Frame* keep(const Frame* root) {
    if (!root) return nullptr;
    if (root->references.load(std::memory_order_relaxed) != 0) {
      root->references.fetch_add(1, std::memory_order_relaxed);
      return root;
    }
    std::vector<const Frame*> work{root};
    while (!work.empty()) {
      const Frame* at = work.back();
      if (copies_.count(at)) {
        work.pop_back();
        continue;
      }
      bool ready = true;
      for (const Frame* parent : at->parents()) {
        if (!parent || parent->references.load(std::memory_order_relaxed) != 0 || copies_.count(parent)) continue;
        work.push_back(parent);
        ready = false;
      }
      if (!ready) continue;
      work.pop_back();
      copies_[at] = copy(at);
    }
    Frame* kept = copies_[root];
    kept->references.fetch_add(1, std::memory_order_relaxed);
    return kept;
  }
  // The keeper's own reference of each copy.
  void finish() {
    for (auto& [arena_frame, kept] : copies_) drop_frame(kept);
  }

 private:
  Frame* copy(const Frame* at) {
    auto* frame =
        new (::operator new(frame_bytes(at->parents_count))) Frame{at->hash, at->key, at->node, at->need, at->left, at->parents_count, 1};
    std::vector<const Frame*> parents(at->parents().begin(), at->parents().end());
    for (const Frame*& parent : parents) {
      if (!parent) continue;
      auto it = copies_.find(parent);
      if (it != copies_.end()) parent = it->second;
      parent->references.fetch_add(1, std::memory_order_relaxed);
    }
    fill_parents(frame, parents);
    return frame;
  }
  std::unordered_map<const Frame*, Frame*> copies_;
};

uint64_t item_hash(const Item& item) {
  return mix(mix(item.node, uint64_t{item.need} << 32 | item.left), item.frame ? item.frame->hash : 1);
}

// Counters further from their limits than a token can reach are all alike to it.
uint64_t counter_key(uint32_t need, uint32_t left, uint32_t reach) { return uint64_t{std::min(need, reach)} << 32 | std::min(left, reach); }

}  // namespace

void* FrameArena::allocate(size_t bytes) {
  while (at_.chunk < chunks_.size() && at_.used + bytes > chunks_[at_.chunk].size) at_ = {at_.chunk + 1, 0};
  if (at_.chunk == chunks_.size()) {
    const size_t size = std::max<size_t>(size_t{1} << std::min<size_t>(10 + chunks_.size(), 16), bytes);
    chunks_.push_back({std::make_unique_for_overwrite<std::byte[]>(size), size});
  }
  void* out = chunks_[at_.chunk].bytes.get() + at_.used;
  at_.used += bytes;
  return out;
}

Frame* FrameArena::make(uint32_t node, uint32_t need, uint32_t left, std::span<const Frame* const> parents, uint32_t reach) {
  uint64_t above = 0, key_above = 0;  // sums: the order of the parents does not matter
  for (const Frame* parent : parents) {
    above += mix(parent ? parent->hash : 1, 7);
    key_above += mix(parent ? parent->key : 1, 7);
  }
  const uint64_t hash = mix(mix(node, uint64_t{need} << 32 | left), above);
  const uint64_t key = mix(mix(node, counter_key(need, left, reach)), key_above);
  auto* frame = new (allocate(frame_bytes(parents.size()))) Frame{hash, key, node, need, left, static_cast<uint32_t>(parents.size()), 0};
  fill_parents(frame, parents);
  return frame;
}

Config::Config(std::vector<Item> items, bool can_end) : items_(std::move(items)), can_end_(can_end) {
  FrameKeeper keeper;
  for (Item& item : items_) item.frame = keeper.keep(item.frame);
  keeper.finish();
}

Config::Config(Config&& other) noexcept : items_(std::exchange(other.items_, {})), can_end_(other.can_end_) {}

Config& Config::operator=(Config&& other) noexcept {
  std::swap(items_, other.items_);
  std::swap(can_end_, other.can_end_);
  return *this;
}

Config::~Config() {
  for (const Item& item : items_) drop_frame(item.frame);
}

uint64_t Config::key(uint32_t reach) const {
  uint64_t sum = can_end_ ? 3 : 5;
  for (const Item& item : items_) sum += mix(mix(item.node, counter_key(item.need, item.left, reach)), item.frame ? item.frame->key : 1);
  return mix(sum, items_.size());
}

bool Machine::later(const Pending& a, const Pending& b) {  // a heap with the lowest rank on top
  auto key = [](const Pending& p) {
    return std::make_tuple(p.rank, p.call.rule, p.direct, p.direct ? 0 : p.call.ret, p.need, p.left, p.call.counted,
                           p.call.counted ? 0 : p.call.need, p.call.counted ? 0 : p.call.left);
  };
  return key(a) > key(b);
}

void Machine::start(std::vector<Item>& items, bool& can_end) {
  items.clear();
  can_end = a_.root_nullable();
  pending_.push_back({a_.rank(a_.root()), {a_.root(), 0, 0, 0, false}, nullptr, 0, 0, true});
  enter(items);
  std::erase_if(items, [&](const Item& item) { return a_.edges(item.node).empty() && a_.tokens(item.node).empty(); });
}

bool Machine::put_seen(uint64_t hash) {
  size_t at = (hash >> 1) & (seen_.size() - 1);
  for (; seen_[at] != 0; at = (at + 1) & (seen_.size() - 1))
    if (seen_[at] == hash) return false;
  seen_[at] = hash;
  return true;
}

void Machine::fill_seen(const std::vector<Item>& items) {
  size_t size = 128;
  while (size < items.size() * 4) size *= 2;
  seen_.assign(size, 0);
  for (const Item& item : items) put_seen(item_hash(item) | 1);
}

// Items are unique. Few are compared one by one; from kLinear on `seen_` has the hashes of the one list that grows.
void Machine::add(std::vector<Item>& items, const Item& item) {
  const uint64_t hash = item_hash(item) | 1;
  if (items.size() < kLinear) {
    for (const Item& other : items)
      if (other.node == item.node && (item_hash(other) | 1) == hash) return;
  } else {
    if (items.size() == kLinear || items.size() * 2 >= seen_.size()) fill_seen(items);
    if (!put_seen(hash)) return;
  }
  items.push_back(item);
}

void Machine::queue_calls(const Item& item) {
  const bool repeat = a_.has(item.node, kRepeatNode);
  if (repeat && item.left == 0) return;
  for (const Call& call : a_.calls(item.node)) {
    Pending p{a_.rank(call.rule), call, item.frame, 0, 0, false};
    if (call.counted) {
      const uint32_t need = repeat ? item.need : call.need, left = repeat ? item.left : call.left;
      p.need = need == 0 ? 0 : need - 1;
      p.left = left == kUnlimited ? left : left - 1;
    } else {
      p.direct = a_.has(call.ret, kPlainEnd);
    }
    pending_.push_back(p);
    std::push_heap(pending_.begin(), pending_.end(), later);
  }
}

// Works off the queued calls by rank: all callers of a rule are known when it is entered, and it is entered once.
void Machine::enter(std::vector<Item>& items) {
  while (!pending_.empty()) {
    const Pending head = pending_.front();
    parents_.clear();
    while (!pending_.empty() && !later(pending_.front(), head)) {
      parents_.push_back(pending_.front().frame);
      std::pop_heap(pending_.begin(), pending_.end(), later);
      pending_.pop_back();
    }
    if (parents_.size() > 1) {
      auto hash = [](const Frame* f) { return f ? f->hash : 1; };
      std::sort(parents_.begin(), parents_.end(), [&](const Frame* a, const Frame* b) { return hash(a) < hash(b); });
      parents_.erase(std::unique(parents_.begin(), parents_.end(), [&](const Frame* a, const Frame* b) { return hash(a) == hash(b); }),
                     parents_.end());
    }
    Item item{a_.entry(head.call.rule), head.call.counted ? 0 : head.call.need, head.call.counted ? 0 : head.call.left, nullptr};
    if (head.direct) {
      for (const Frame* frame : parents_) {
        item.frame = frame;
        add(items, item);
      }
      // The rule's own calls see each frame; add() has made them unique.
      const std::vector<const Frame*> frames = parents_;
      for (const Frame* frame : frames) {
        item.frame = frame;
        queue_calls(item);
      }
    } else {
      item.frame = arena_.make(head.call.ret, head.need, head.left, parents_, reach_);
      add(items, item);
      queue_calls(item);
    }
  }
}

void Machine::close(std::vector<Item>& items, bool& can_end) {
  // Returns first. `items` grows while it is read.
  bool calls = false, idle = false;
  if (items.size() > kLinear) fill_seen(items);
  for (size_t i = 0; i < items.size(); i++) {
    const Item item = items[i];
    if (a_.has(item.node, kRepeatNode)) {
      if (item.need == 0) add(items, {a_.exit(item.node), 0, 0, item.frame});
    }
    if (a_.has(item.node, kAccept)) {
      if (!item.frame) {
        can_end = true;
      } else {
        for (const Frame* parent : item.frame->parents()) add(items, {item.frame->node, item.frame->need, item.frame->left, parent});
      }
    }
    calls |= !a_.calls(item.node).empty();
    idle |= a_.edges(item.node).empty() && a_.tokens(item.node).empty();
  }
  if (calls) {
    const size_t n = items.size();
    for (size_t i = 0; i < n; i++) queue_calls(Item(items[i]));
    enter(items);
  }
  if (calls || idle) std::erase_if(items, [&](const Item& item) { return a_.edges(item.node).empty() && a_.tokens(item.node).empty(); });
}

bool Machine::step(std::span<const Item> from, uint8_t byte, std::vector<Item>& items, bool& can_end) {
  items.clear();
  can_end = false;
  for (const Item& item : from) {
    const uint32_t target = a_.next(item.node, byte);
    if (target == Automaton::kNone) continue;
    Item moved{target, 0, 0, item.frame};
    if (item.node < a_.string_nodes()) {
      moved.need = item.need;
      moved.left = item.left;
      if (a_.has(item.node, kStringHead) && (byte == '"' ? item.need != 0 : item.left == 0)) continue;
      if (a_.has(target, kStringHead) && !a_.has(item.node, kStringEntry)) {
        if (moved.need != 0) moved.need--;
        if (moved.left != kUnlimited) moved.left--;
      }
    }
    add(items, moved);
  }
  if (items.empty()) return false;
  close(items, can_end);
  return true;
}

void Machine::step_token(std::span<const Item> from, int32_t id, std::vector<Item>& items, bool& can_end) {
  items.clear();
  can_end = false;
  for (const Item& item : from)
    for (const TokenEdge& edge : a_.tokens(item.node))
      if (edge.id == id) add(items, {edge.target, 0, 0, item.frame});
  if (!items.empty()) close(items, can_end);
}

bool Machine::run(std::span<const Item> from, std::string_view bytes, std::vector<Item>& items, bool& can_end) {
  raw_.assign(from.begin(), from.end());
  for (char c : bytes) {
    if (!step(raw_, static_cast<uint8_t>(c), items, can_end)) return false;
    raw_.swap(items);
  }
  items.swap(raw_);
  return true;
}

}  // namespace dg::grammar
