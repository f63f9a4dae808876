// Positions in a grammar: sets of (node, counters, stack). Stacks are immutable frames that share their tails, with several
// parents where several callers wait for the same rule, so that the size of a position is bounded by the grammar times the
// length of the text, whatever the ambiguity. Frames of positions that are kept are counted references; those made while a
// token is tried lie in an arena and vanish with it. Nothing here recurses: the text may nest as deep as it likes.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "text/grammar_automaton.h"

namespace dg::grammar {

// Where to go on when a called rule ends. nullptr among the parents: the end of the whole text.
struct Frame {
  uint64_t hash;  // of everything reachable: frames of equal hash are equal
  uint64_t key;   // the same, with counters beyond the reach of one token made equal: for the cache of masks
  uint32_t node;
  uint32_t need, left;  // counters of a repeat node: still required, still allowed
  uint32_t parents_count;
  mutable std::atomic<uint32_t> references;  // 0: in an arena
  std::span<const Frame* const> parents() const { return {reinterpret_cast<const Frame* const*>(this + 1), parents_count}; }
};

struct Item {
  uint32_t node;
  uint32_t need, left;
  const Frame* frame;
};

// Frames that live until release(mark).
class FrameArena {
 public:
  struct Mark {
    size_t chunk = 0, used = 0;
  };
  Mark mark() const { return at_; }
  void release(Mark mark) { at_ = mark; }
  Frame* make(uint32_t node, uint32_t need, uint32_t left, std::span<const Frame* const> parents, uint32_t reach);

 private:
  struct Chunk {
    std::unique_ptr<std::byte[]> bytes;
    size_t size;
  };
  void* allocate(size_t bytes);
  std::vector<Chunk> chunks_;
  Mark at_;
};

// A position that is kept: the items that can consume something.
class Config {
 public:
  Config() = default;
  Config(std::vector<Item> items, bool can_end);  // takes its own references; arena frames are copied
  Config(Config&& other) noexcept;
  Config& operator=(Config&& other) noexcept;
  Config(const Config&) = delete;
  ~Config();
  std::span<const Item> items() const { return items_; }
  bool can_end() const { return can_end_; }
  uint64_t key(uint32_t reach) const;

 private:
  std::vector<Item> items_;
  bool can_end_ = false;
};

// Moves positions over bytes. Scratch space of one thread.
class Machine {
 public:
  // `reach`: no token has more bytes than this; counters that far from their limits do not matter to a mask.
  Machine(const Automaton& automaton, uint32_t reach) : a_(automaton), reach_(reach) {}

  void start(std::vector<Item>& items, bool& can_end);
  // Items after one byte, closed; false and empty when it may not follow (and the text may not end there either).
  bool step(std::span<const Item> from, uint8_t byte, std::vector<Item>& items, bool& can_end);
  // Adds all that follows without input: returns, then calls. Items that cannot consume anything are dropped at the end.
  void close(std::vector<Item>& items, bool& can_end);
  void step_token(std::span<const Item> from, int32_t id, std::vector<Item>& items, bool& can_end);
  bool run(std::span<const Item> from, std::string_view bytes, std::vector<Item>& items, bool& can_end);

  FrameArena& arena() { return arena_; }
  const Automaton& automaton() const { return a_; }

 private:
  struct Pending {
    uint32_t rank;
    Call call;
    const Frame* frame;   // nullptr as well as a frame: the caller's
    uint32_t need, left;  // counters of the frame to make
    bool direct;          // a call at the very end of its rule: the caller's frame is passed on
  };
  static bool later(const Pending& a, const Pending& b);
  static constexpr size_t kLinear = 24;
  bool put_seen(uint64_t hash);
  void fill_seen(const std::vector<Item>& items);
  void add(std::vector<Item>& items, const Item& item);
  void queue_calls(const Item& item);
  void enter(std::vector<Item>& items);

  const Automaton& a_;
  uint32_t reach_;
  FrameArena arena_;
  std::vector<Pending> pending_;
  std::vector<const Frame*> parents_;
  std::vector<Item> raw_;
  std::vector<uint64_t> seen_;  // open addressing, used when a position has many items
};

uint64_t mix(uint64_t a, uint64_t b);

}  // namespace dg::grammar
