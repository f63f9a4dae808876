#include "kv/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "kv/block_table.h"

namespace dg {
namespace {

constexpr int kBlockTokens = 4;

std::vector<int32_t> counting(int64_t first, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), static_cast<int32_t>(first));
  return ids;
}

class PrefixTreeTest : public testing::Test {
 protected:
  // A sequence that computed all of `ids`, gave its blocks to the tree and ended.
  std::vector<int32_t> cache(std::string_view salt, const std::vector<int32_t>& ids) {
    BlockTable table(allocator_, kBlockTokens);
    PrefixTree::Match match = tree_.match(salt, ids, static_cast<int64_t>(ids.size()));
    table.share(match.blocks);
    EXPECT_TRUE(table.try_reserve(static_cast<int64_t>(ids.size())));
    tree_.insert(salt, ids, table.blocks());
    return table.blocks();
  }
  int64_t peek(std::string_view salt, const std::vector<int32_t>& ids) { return tree_.peek(salt, ids, INT64_MAX); }
  void TearDown() override { tree_.check_integrity(); }

  BlockAllocator allocator_{32};
  PrefixTree tree_{allocator_, kBlockTokens};
};

TEST_F(PrefixTreeTest, FindsWholeBlocksUpToTheLimit) {
  std::vector<int32_t> ids = counting(0, 14);
  std::vector<int32_t> blocks = cache("", ids);
  EXPECT_EQ(tree_.nodes(), 3) << "the fourth block is not full";
  EXPECT_EQ(allocator_.cached_blocks(), 3);
  EXPECT_EQ(allocator_.free_blocks(), 29);

  PrefixTree::Match all = tree_.match("", ids, 14), shorter = tree_.match("", ids, 11);
  EXPECT_EQ(all.tokens, 12);
  EXPECT_TRUE(std::equal(all.blocks.begin(), all.blocks.end(), blocks.begin()));
  EXPECT_EQ(shorter.tokens, 8) << "at most 11 tokens are 2 whole blocks";
  EXPECT_EQ(allocator_.refs(blocks[0]), 3);
  EXPECT_EQ(allocator_.refs(blocks[2]), 2);
  EXPECT_EQ(tree_.queries(), 14u * 3) << "cache() asked once too";
  EXPECT_EQ(tree_.hits(), 20u);
  EXPECT_EQ(tree_.peek("", ids, -5), 0);
  EXPECT_EQ(tree_.match("", std::vector<int32_t>{0, 1, 2, 9}, 4).tokens, 0);
  EXPECT_EQ(tree_.match("", {}, 4).tokens, 0);
  EXPECT_EQ(peek("", {0, 1, 2, 3, 4, 5, 6, 8}), 4);
  for (int32_t block : all.blocks) allocator_.release(block);
  for (int32_t block : shorter.blocks) allocator_.release(block);
  EXPECT_EQ(allocator_.cached_blocks(), 3);
}

TEST_F(PrefixTreeTest, SaltsAreSeparateWorlds) {
  std::vector<int32_t> ids = counting(0, 8);
  std::vector<int32_t> a = cache("a", ids);
  EXPECT_EQ(peek("a", ids), 8);
  EXPECT_EQ(peek("b", ids), 0);
  EXPECT_EQ(peek("", ids), 0);
  std::vector<int32_t> b = cache("b", ids);
  EXPECT_NE(a[0], b[0]);
  EXPECT_EQ(tree_.nodes(), 4);
  EXPECT_EQ(tree_.evict(2), 2);
  EXPECT_EQ(peek("a", ids), 0);
  EXPECT_EQ(peek("b", ids), 8);
  EXPECT_EQ(cache("c", ids).size(), 2u) << "a's root is used again, for c";
  EXPECT_EQ(peek("a", ids), 0);
  EXPECT_EQ(peek("c", ids), 8);
}

TEST_F(PrefixTreeTest, TheSameBlockAfterAnotherPrefixIsAnotherNode) {
  cache("", {1, 1, 1, 1, 5, 6, 7, 8});
  EXPECT_EQ(peek("", {2, 2, 2, 2, 5, 6, 7, 8}), 0);
  EXPECT_EQ(peek("", {5, 6, 7, 8}), 0);
  cache("", {2, 2, 2, 2, 5, 6, 7, 8});
  EXPECT_EQ(tree_.nodes(), 4);
}

TEST_F(PrefixTreeTest, EvictsLeastRecentlyUsedLeavesFirst) {
  std::vector<int32_t> common = counting(0, 4), old = counting(0, 12), young = counting(0, 4), other = counting(100, 8);
  for (int32_t id : {50, 51, 52, 53, 54, 55, 56, 57}) young.push_back(id);
  cache("", old);
  cache("", other);
  cache("", young);
  EXPECT_EQ(tree_.evict(1), 1);
  EXPECT_EQ(peek("", old), 8) << "its last block went first";
  EXPECT_EQ(tree_.evict(1), 1);
  EXPECT_EQ(peek("", old), 4) << "then the one before, not another chain's";
  EXPECT_EQ(tree_.match("", other, 0).tokens, 0);
  EXPECT_EQ(tree_.evict(2), 2);
  EXPECT_EQ(peek("", other), 0);
  EXPECT_EQ(peek("", young), 12) << "with the block that both chains share";
  EXPECT_EQ(tree_.evict(100), 3);
  EXPECT_EQ(allocator_.free_blocks(), 32);
  EXPECT_EQ(tree_.evicted(), 7u);
  EXPECT_EQ(tree_.evict(1), 0);
}

TEST_F(PrefixTreeTest, AMatchMakesAPathYoungAndPeekDoesNot) {
  std::vector<int32_t> a = counting(0, 8), b = counting(100, 8), c = counting(200, 8);
  cache("", a);
  cache("", b);
  cache("", c);
  for (int32_t block : tree_.match("", a, 8).blocks) allocator_.release(block);
  EXPECT_EQ(peek("", b), 8);
  EXPECT_EQ(tree_.evict(2), 2);
  EXPECT_EQ(peek("", a), 8);
  EXPECT_EQ(peek("", b), 0);
  EXPECT_EQ(peek("", c), 8);
}

TEST_F(PrefixTreeTest, BlocksInUseStay) {
  std::vector<int32_t> a = counting(0, 12), b = counting(100, 8);
  cache("", a);
  cache("", b);
  BlockTable user(allocator_, kBlockTokens);
  user.share(tree_.match("", a, 8).blocks);
  EXPECT_EQ(allocator_.cached_blocks(), 3);
  EXPECT_EQ(tree_.evict(100), 3);
  EXPECT_EQ(peek("", a), 8);
  tree_.clear();
  EXPECT_EQ(peek("", a), 8) << "clear() too leaves what a sequence uses";
  user.clear();
  EXPECT_EQ(allocator_.cached_blocks(), 2) << "released, so it can be evicted now";
  tree_.clear();
  EXPECT_EQ(tree_.nodes(), 0);
  EXPECT_EQ(allocator_.free_blocks(), 32);
  EXPECT_EQ(tree_.evicted(), 3u) << "clear() is no eviction";
}

TEST_F(PrefixTreeTest, ExistingNodesWinAndCanStillBeEvicted) {
  std::vector<int32_t> prompt = counting(0, 8), longer = counting(0, 16);
  // Two sequences compute the same prompt at the same time; the second goes on.
  BlockTable first(allocator_, kBlockTokens), second(allocator_, kBlockTokens);
  ASSERT_TRUE(first.try_reserve(8) && second.try_reserve(16));
  tree_.insert("", prompt, first.blocks());
  tree_.insert("", longer, second.blocks());
  EXPECT_EQ(tree_.nodes(), 4);
  PrefixTree::Match match = tree_.match("", longer, 16);
  EXPECT_EQ(match.blocks[1], first.blocks()[1]);
  EXPECT_EQ(match.blocks[2], second.blocks()[2]);
  for (int32_t block : match.blocks) allocator_.release(block);
  first.clear();
  tree_.check_integrity();
  // The first one's blocks are held by the tree alone now, under children that are in use.
  EXPECT_EQ(allocator_.cached_blocks(), 2);
  EXPECT_EQ(tree_.evict(1), 1) << "what counts as cached can be freed";
  EXPECT_EQ(peek("", longer), 4);
  tree_.check_integrity();
  tree_.insert("", longer, second.blocks());
  EXPECT_EQ(peek("", longer), 16) << "the second's own blocks";
  EXPECT_EQ(tree_.nodes(), 4);
}

TEST_F(PrefixTreeTest, GivesEverythingBackAtItsEnd) {
  BlockTable user(allocator_, kBlockTokens);
  {
    PrefixTree tree(allocator_, kBlockTokens);
    ASSERT_TRUE(user.try_reserve(8));
    tree.insert("x", counting(0, 8), user.blocks());
    EXPECT_EQ(allocator_.refs(user.blocks()[0]), 2);
  }
  EXPECT_EQ(allocator_.refs(user.blocks()[0]), 1);
  user.clear();
  EXPECT_EQ(allocator_.free_blocks(), 32);
}

TEST_F(PrefixTreeTest, TooFewBlocksAreABug) {
  int32_t block = allocator_.allocate();
  EXPECT_DEATH(tree_.insert("", counting(0, 8), {&block, 1}), "1 blocks for 8 tokens");
  allocator_.release(block);
}

TEST(PrefixTree, AMillionTokens) {
  constexpr int64_t kTokens = 1'000'000;
  BlockAllocator allocator(kTokens / 16);
  PrefixTree tree(allocator, 16);
  std::vector<int32_t> ids = counting(0, kTokens);
  BlockTable table(allocator, 16);
  ASSERT_TRUE(table.try_reserve(kTokens));
  tree.insert("", ids, table.blocks());
  table.clear();
  table.share(tree.match("", ids, kTokens).blocks);
  EXPECT_EQ(table.blocks().size(), static_cast<size_t>(kTokens / 16));
  EXPECT_EQ(tree.evict(10), 0);
  table.clear();
  tree.check_integrity();
  EXPECT_EQ(tree.evict(kTokens), kTokens / 16);
  tree.check_integrity();
}

}  // namespace
}  // namespace dg
