// Random operations of many sequences on one PrefixTree, against a model of plain maps that looks everything up by scanning.
// The cache's content is modelled too: a block remembers which tokens were written into it, so a match that returned a wrong
// or overwritten block, or a write into a block that others read, is found whatever the accounting says.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

#include "kv/block_table.h"
#include "kv/prefix_tree.h"

namespace dg {
namespace {

using Tokens = std::vector<int32_t>;

class Simulation {
 public:
  Simulation(uint32_t seed, int64_t blocks, int block_tokens)
      : random_(seed), bt_(block_tokens), allocator_(blocks), tree_(allocator_, block_tokens), content_(static_cast<size_t>(blocks)) {
    for (Tokens& tokens : content_) tokens.resize(static_cast<size_t>(block_tokens));
  }

  void step() {
    switch (pick(9)) {
      case 0:
      case 1: start(); break;
      case 2:
      case 3:
      case 4: extend(); break;
      case 5: insert(); break;
      case 6: release(); break;
      case 7: evict(pick(4)); break;
      default:
        if (pick(40) == 0) clear();
    }
    check();
  }
  void finish() {
    sequences_.clear();
    check();
    clear();
    EXPECT_EQ(allocator_.free_blocks(), allocator_.blocks());
    EXPECT_EQ(tree_.nodes(), 0);
  }
  uint64_t hits() const { return tree_.hits(); }
  int64_t forgotten() const { return forgotten_; }

 private:
  struct Sequence {
    std::string salt;
    Tokens ids;
    BlockTable table;
  };
  struct Entry {
    int32_t block;
    uint64_t tick;
  };
  using Key = std::pair<std::string, Tokens>;  // salt, all tokens up to the end of the block

  int64_t pick(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  Key key(const std::string& salt, const Tokens& ids, int64_t blocks) const {
    return {salt, Tokens(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(blocks * bt_))};
  }
  int64_t whole(const Tokens& ids) const { return static_cast<int64_t>(ids.size()) / bt_; }

  int64_t holders(int32_t block) const {
    int64_t n = 0;
    for (const auto& s : sequences_) n += std::count(s->table.blocks().begin(), s->table.blocks().end(), block);
    for (const auto& [k, entry] : model_) n += entry.block == block;
    return n;
  }
  int64_t cached_alone() const {
    int64_t n = 0;
    for (const auto& [k, entry] : model_) n += holders(entry.block) == 1;
    return n;
  }
  bool leaf(const Key& k) const {
    return std::none_of(model_.begin(), model_.end(), [&](const auto& other) {
      return other.first.first == k.first && other.first.second.size() > k.second.size() &&
             std::equal(k.second.begin(), k.second.end(), other.first.second.begin());
    });
  }
  Key oldest_leaf() const {
    const Key* best = nullptr;
    for (const auto& [k, entry] : model_)
      if ((!best || entry.tick < model_.at(*best).tick) && leaf(k)) best = &k;
    return *best;
  }
  void drop(const Key& k) {
    Key parent = key(k.first, k.second, whole(k.second) - 1);
    auto at = model_.find(parent);
    if (at != model_.end()) at->second.tick = std::max(at->second.tick, model_.at(k).tick);
    model_.erase(k);
  }
  int64_t model_evict(int64_t wanted) {
    int64_t freed = 0;
    uint64_t before = clock_;
    while (freed < wanted && cached_alone() > 0) {
      Key k = oldest_leaf();
      if (model_.at(k).tick > before) break;
      if (holders(model_.at(k).block) > 1) {
        model_.at(k).tick = ++clock_;
      } else {
        drop(k);
        freed++;
      }
    }
    while (freed < wanted && cached_alone() > 0) {
      Key k = oldest_leaf();
      bool alone = holders(model_.at(k).block) == 1;
      freed += alone;
      forgotten_ += !alone;
      drop(k);
    }
    return freed;
  }

  void start() {
    if (sequences_.size() >= 8) return;
    Tokens ids(static_cast<size_t>(pick(7 * bt_)));
    for (int32_t& id : ids) id = static_cast<int32_t>(pick(2));
    if (!history_.empty() && pick(3) > 0) {  // the beginning of an older one: long matches
      const Tokens& old = history_[static_cast<size_t>(pick(static_cast<int64_t>(history_.size())))];
      std::copy_n(old.begin(), std::min(old.size(), ids.size()), ids.begin());
    }
    std::string salt(static_cast<size_t>(pick(3)), 's');
    int64_t max_tokens = pick(2) ? static_cast<int64_t>(ids.size()) - 1 : pick(40);

    std::vector<int32_t> expected;
    bool known = std::any_of(model_.begin(), model_.end(), [&](const auto& entry) { return entry.first.first == salt; });
    clock_ += known;
    for (int64_t i = 1; i <= std::min(whole(ids), max_tokens / bt_) && model_.count(key(salt, ids, i)); i++) {
      Entry& entry = model_.at(key(salt, ids, i));
      entry.tick = clock_;
      expected.push_back(entry.block);
    }
    ASSERT_EQ(tree_.peek(salt, ids, max_tokens), static_cast<int64_t>(expected.size()) * bt_);
    PrefixTree::Match match = tree_.match(salt, ids, max_tokens);
    ASSERT_EQ(match.blocks, expected);
    ASSERT_EQ(match.tokens, static_cast<int64_t>(expected.size()) * bt_);
    for (size_t i = 0; i < expected.size(); i++)
      ASSERT_TRUE(std::equal(content_[static_cast<size_t>(expected[i])].begin(), content_[static_cast<size_t>(expected[i])].end(),
                             ids.begin() + static_cast<std::ptrdiff_t>(i) * bt_))
          << "block " << expected[i] << " holds other tokens";
    auto sequence = std::make_unique<Sequence>(Sequence{salt, {}, BlockTable(allocator_, bt_)});
    sequence->table.share(match.blocks);
    sequence->ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(match.tokens));
    sequences_.push_back(std::move(sequence));
    ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(match.tokens));
    append(*sequences_.back(), ids);
  }

  // Computes `ids` behind what the sequence has; evicts for it, or gives up when everything is in use.
  void append(Sequence& s, const Tokens& ids) {
    auto tokens = static_cast<int64_t>(s.ids.size() + ids.size());
    int64_t missing = s.table.missing_blocks(tokens);
    if (missing > allocator_.free_blocks()) evict(missing - allocator_.free_blocks());
    std::vector<int32_t> before = s.table.blocks();
    int64_t free = allocator_.free_blocks();
    ASSERT_EQ(s.table.try_reserve(tokens), missing <= free);
    if (missing > free) {
      ASSERT_EQ(s.table.blocks(), before);
      return;
    }
    for (int32_t id : ids) {
      int32_t slot = s.table.slot(static_cast<int64_t>(s.ids.size()));
      ASSERT_EQ(allocator_.refs(slot / bt_), 1) << "writes into a block that others hold";
      content_[static_cast<size_t>(slot / bt_)][static_cast<size_t>(slot % bt_)] = id;
      s.ids.push_back(id);
    }
    history_.push_back(s.ids);
    if (history_.size() > 20) history_.erase(history_.begin());
  }

  Sequence* any() {
    if (sequences_.empty()) return nullptr;
    return sequences_[static_cast<size_t>(pick(static_cast<int64_t>(sequences_.size())))].get();
  }

  void extend() {
    Tokens ids(static_cast<size_t>(pick(2 * bt_)));
    for (int32_t& id : ids) id = static_cast<int32_t>(pick(2));
    if (Sequence* s = any()) append(*s, ids);
  }

  void insert() {
    Sequence* s = any();
    if (!s) return;
    tree_.insert(s->salt, s->ids, s->table.blocks());
    clock_ += whole(s->ids) > 0;
    for (int64_t i = 1; i <= whole(s->ids); i++) {
      auto [at, added] = model_.try_emplace(key(s->salt, s->ids, i), Entry{s->table.blocks()[static_cast<size_t>(i - 1)], clock_});
      at->second.tick = clock_;
    }
  }

  void release() {
    if (sequences_.empty()) return;
    sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(pick(static_cast<int64_t>(sequences_.size()))));
  }

  void evict(int64_t blocks) {
    int64_t can = allocator_.cached_blocks(), freed = tree_.evict(blocks);
    ASSERT_EQ(freed, std::min(blocks, can));
    ASSERT_EQ(freed, model_evict(blocks));
  }

  void clear() {
    tree_.clear();
    model_evict(allocator_.blocks());
    ASSERT_EQ(allocator_.cached_blocks(), 0);
  }

  void check() {
    tree_.check_integrity();
    ASSERT_EQ(tree_.nodes(), static_cast<int64_t>(model_.size()));
    for (const auto& [k, entry] : model_)  // with the same count: exactly the same nodes
      ASSERT_EQ(tree_.peek(k.first, k.second, INT64_MAX), static_cast<int64_t>(k.second.size()));
    int64_t free = 0;
    for (int32_t block = 0; block < allocator_.blocks(); block++) {
      ASSERT_EQ(allocator_.refs(block), holders(block)) << "block " << block;
      free += allocator_.refs(block) == 0;
    }
    ASSERT_EQ(allocator_.free_blocks(), free);
    ASSERT_EQ(allocator_.cached_blocks(), cached_alone());
  }

  std::mt19937 random_;
  int bt_;
  BlockAllocator allocator_;
  PrefixTree tree_;
  std::vector<Tokens> content_;  // per block: the tokens whose cache it holds
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<Tokens> history_;
  std::map<Key, Entry> model_;
  uint64_t clock_ = 0;
  int64_t forgotten_ = 0;
};

TEST(PrefixTreeRandom, AgreesWithTheNaiveModel) {
  uint64_t hits = 0;
  int64_t forgotten = 0;
  for (uint32_t seed = 0; seed < 12; seed++) {
    Simulation simulation(seed, seed % 2 ? 40 : 12, seed % 3 ? 2 : 1);
    for (int step = 0; step < 1500; step++) {
      simulation.step();
      ASSERT_FALSE(testing::Test::HasFatalFailure()) << "seed " << seed << ", step " << step;
    }
    simulation.finish();
    hits += simulation.hits();
    forgotten += simulation.forgotten();
  }
  EXPECT_GT(hits, 1000u) << "the operations must reach the interesting cases";
  EXPECT_GT(forgotten, 10) << "blocks held by the tree alone under children in use";
}

}  // namespace
}  // namespace dg
