#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <random>

namespace dg {
namespace {

// Memory only: the pool never runs an op.
class MemoryBackend : public Backend {
 public:
  const char* name() const override { return "memory"; }
  bool supports(const Format&) const override { return true; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char*) override {
    struct Block : DeviceMemory {
      explicit Block(size_t n) : storage(n) {
        data_ = storage.data();
        bytes_ = n;
      }
      std::vector<std::byte> storage;
    };
    return std::unique_ptr<DeviceMemory>(std::make_unique<Block>(bytes));
  }
#define DG_UNUSED_OP(method, Op) \
  void method(const Op&) override { FAIL() << #method; }
  DG_OPS(DG_UNUSED_OP)
#undef DG_UNUSED_OP
};

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

TEST(KvPool, DoubleFreeIsABug) {
  MemoryBackend backend;
  auto pool = make_pool(backend, 2);
  int32_t block = *pool->allocate();
  pool->free(block);
  EXPECT_DEATH(pool->free(block), "block");
}

}  // namespace
}  // namespace dg
