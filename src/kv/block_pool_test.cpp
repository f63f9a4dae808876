#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <random>

#include "device/memory_backend_for_tests.h"

namespace dg {
namespace {

std::unique_ptr<KvPool> make_pool(Backend& backend, int64_t blocks) {
  CacheLayout layout;
  layout.add("k", 24);
  layout.add("latent", 40);
  EXPECT_EQ(layout.bytes_per_token(Dtype::kBf16), 128);
  return *KvPool::create(backend, layout, {.dtype = Dtype::kBf16, .block_tokens = 4, .blocks = blocks});
}

TEST(KvPool, PartsAreDisjointAndShaped) {
  MemoryBackend backend;
  auto pool = make_pool(backend, 8);
  ASSERT_EQ(pool->part_count(), 2);
  const Tensor &k = pool->part(0).data, &latent = pool->part(1).data;
  EXPECT_EQ(k.shape, (std::array<int64_t, 4>{8, 4, 24, 0}));
  EXPECT_EQ(pool->part(1).width(), 40);
  EXPECT_GE(static_cast<std::byte*>(latent.data), static_cast<std::byte*>(k.data) + k.bytes());
}

TEST(KvPool, Int8RowsCarryTheirScales) {
  MemoryBackend backend;
  CacheLayout layout;
  layout.add("k", 24);
  layout.add("latent", 100);
  EXPECT_EQ(layout.bytes_per_token(Dtype::kI8), 24 + 2 + 100 + 4);
  auto pool = *KvPool::create(backend, layout, {.dtype = Dtype::kI8, .block_tokens = 4, .blocks = 8});
  const Tensor &k = pool->part(0).data, &latent = pool->part(1).data;
  EXPECT_EQ(latent.shape, (std::array<int64_t, 4>{8, 4, 100, 0}));
  EXPECT_EQ(latent.stride[1], 104);
  EXPECT_EQ(latent.stride[0], 4 * 104);
  EXPECT_GE(static_cast<std::byte*>(latent.data), static_cast<std::byte*>(k.data) + 8 * 4 * 26);
  EXPECT_GE(pool->bytes(), 8 * 4 * (26 + 104));
}

TEST(BlockTable, SlotsFollowBlocksAndErrorsNameTheNumbers) {
  MemoryBackend backend;
  auto pool = make_pool(backend, 3);
  BlockTable table(*pool);
  ASSERT_TRUE(table.reserve(9).ok());
  EXPECT_EQ(table.blocks().size(), 3u);
  EXPECT_EQ(table.slot(5), table.blocks()[1] * 4 + 1);
  auto full = table.reserve(13);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().kind, ErrorKind::kResource);
  EXPECT_NE(full.error().message.find("all 3 blocks of 4 tokens"), std::string::npos);
  table.truncate(4);
  EXPECT_EQ(pool->free_blocks(), 2);
  pool->check_integrity();
}

TEST(KvPool, RandomOperationsKeepIntegrity) {
  MemoryBackend backend;
  auto pool = make_pool(backend, 50);
  std::mt19937 rng(11);
  std::vector<std::unique_ptr<BlockTable>> tables;
  for (int step = 0; step < 20000; step++) {
    switch (rng() % 4) {
      case 0: tables.push_back(std::make_unique<BlockTable>(*pool)); break;
      case 1:
        if (!tables.empty()) (void)tables[rng() % tables.size()]->reserve(static_cast<int64_t>(rng() % 60)).ok();
        break;
      case 2:
        if (!tables.empty()) tables[rng() % tables.size()]->truncate(static_cast<int64_t>(rng() % 60));
        break;
      default:
        if (!tables.empty()) tables.erase(tables.begin() + static_cast<long>(rng() % tables.size()));
    }
    if (step % 100 == 0) pool->check_integrity();
    size_t held = 0;
    for (auto& t : tables) held += t->blocks().size();
    ASSERT_EQ(static_cast<int64_t>(held) + pool->free_blocks(), 50);
  }
  tables.clear();
  EXPECT_EQ(pool->free_blocks(), 50);
}

TEST(BlockTable, AFailedReserveChangesNothing) {
  BlockAllocator allocator(4);
  BlockTable other(allocator, 4), table(allocator, 4);
  ASSERT_TRUE(other.try_reserve(5));
  ASSERT_TRUE(table.try_reserve(4));
  std::vector<int32_t> before = table.blocks();
  EXPECT_EQ(table.missing_blocks(13), 3);
  EXPECT_EQ(table.missing_blocks(4), 0);
  EXPECT_EQ(table.missing_blocks(INT64_MAX), INT64_MAX / 4) << "rounded up, less the one it has";
  EXPECT_FALSE(table.try_reserve(13));
  EXPECT_FALSE(table.reserve(INT64_MAX).ok());
  EXPECT_EQ(table.blocks(), before);
  EXPECT_EQ(allocator.free_blocks(), 1);
  EXPECT_TRUE(table.try_reserve(8));
  EXPECT_EQ(allocator.free_blocks(), 0);
}

TEST(BlockTable, MovesTakeTheBlocksAlong) {
  BlockAllocator allocator(6);
  BlockTable a(allocator, 2);
  ASSERT_TRUE(a.try_reserve(6));
  std::vector<int32_t> blocks = a.blocks();
  BlockTable b(std::move(a));
  EXPECT_EQ(b.blocks(), blocks);
  BlockTable c(allocator, 2);
  ASSERT_TRUE(c.try_reserve(2));
  EXPECT_EQ(allocator.free_blocks(), 2);
  c = std::move(b);
  EXPECT_EQ(c.blocks(), blocks);
  EXPECT_EQ(allocator.free_blocks(), 3) << "what c held before is free";
  c.clear();
  EXPECT_EQ(allocator.free_blocks(), 6);
  allocator.check_integrity();
}

TEST(BlockTable, SharedBlocksLiveUntilTheLastHolder) {
  BlockAllocator allocator(6);
  BlockTable first(allocator, 2), second(allocator, 2);
  ASSERT_TRUE(first.try_reserve(5));
  std::vector<int32_t> shared(first.blocks().begin(), first.blocks().begin() + 2);
  for (int32_t block : shared) allocator.retain(block);
  second.share(shared);
  ASSERT_TRUE(second.try_reserve(6));
  EXPECT_EQ(second.slot(3), first.slot(3));
  EXPECT_NE(second.slot(4), first.slot(4)) << "behind the shared blocks each writes its own";
  EXPECT_EQ(allocator.used_blocks(), 4);
  first.clear();
  EXPECT_EQ(allocator.used_blocks(), 3);
  EXPECT_EQ(allocator.refs(shared[0]), 1);
  second.clear();
  EXPECT_EQ(allocator.free_blocks(), 6);
}

TEST(BlockAllocator, CountsFreeUsedAndCached) {
  BlockAllocator allocator(2);
  int32_t a = allocator.allocate(), b = allocator.allocate();
  EXPECT_EQ(a, 0);
  EXPECT_EQ(b, 1);
  EXPECT_EQ(allocator.allocate(), -1);
  allocator.retain(a);  // the tree's
  allocator.set_cached(a, true);
  EXPECT_EQ(allocator.cached_blocks(), 0) << "a sequence uses it";
  EXPECT_EQ(allocator.used_blocks(), 2);
  allocator.release(a);
  EXPECT_EQ(allocator.cached_blocks(), 1);
  EXPECT_EQ(allocator.used_blocks(), 1);
  allocator.retain(a);
  EXPECT_EQ(allocator.cached_blocks(), 0);
  allocator.release(a);
  allocator.set_cached(a, false);
  EXPECT_EQ(allocator.cached_blocks(), 0);
  allocator.release(a);
  EXPECT_EQ(allocator.free_blocks(), 1);
  allocator.check_integrity();
}

TEST(BlockAllocator, MisuseIsABug) {
  BlockAllocator allocator(2);
  int32_t block = allocator.allocate();
  EXPECT_DEATH(allocator.retain(1), "block 1 has 0 holders");
  EXPECT_DEATH(allocator.release(2), "block 2 of 2");
  EXPECT_DEATH(allocator.refs(-1), "block -1");
  allocator.set_cached(block, true);
  EXPECT_DEATH(allocator.set_cached(block, true), "in the prefix tree twice");
  EXPECT_DEATH(allocator.release(block), "still in the prefix tree");
  allocator.set_cached(block, false);
  allocator.release(block);
  EXPECT_DEATH(allocator.release(block), "free already");
}

}  // namespace
}  // namespace dg
