#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <vector>

#include "tensor/arena.h"

namespace dg {
namespace {

TEST(Tensor, SlicesAndSplitsAreViews) {
  std::vector<float> data(4 * 12);
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<float>(i);
  Tensor t = Tensor::of(data.data(), Dtype::kF32, {4, 12});
  Tensor heads = t.split_last(3);  // (4, 3, 4)
  EXPECT_EQ(heads.rank, 3);
  EXPECT_EQ(*heads.f32(2, 1, 3), 2 * 12 + 1 * 4 + 3);
  Tensor tail = heads.slice(2, 2, 2);  // last two of each head
  EXPECT_FALSE(tail.contiguous());
  EXPECT_EQ(*tail.f32(3, 2, 1), 3 * 12 + 2 * 4 + 3);
  Tensor columns = t.slice(1, 4, 4).split_last(1);  // strided rows keep their stride
  EXPECT_EQ(*columns.f32(1, 0, 2), 12 + 4 + 2);
  EXPECT_EQ(t.slice(0, 1, 2).elements(), 24);
  EXPECT_EQ(t.reshaped({48}).cols(), 48);
}

TEST(Tensor, RefusesBadSlices) {
  float x[4] = {};
  Tensor t = Tensor::of(x, Dtype::kF32, {2, 2});
  EXPECT_DEATH(t.slice(1, 1, 2), "slice");
  EXPECT_DEATH(t.slice(1, 0, 1).reshaped({2}), "contiguous");
  EXPECT_DEATH(t.i32(), "kI32");
}

TEST(Dtype, NamesRoundTrip) {
  for (int i = 0; i < kDtypeCount; i++) {
    auto dtype = static_cast<Dtype>(i);
    Dtype back;
    ASSERT_TRUE(parse_dtype(dtype_name(dtype), &back));
    EXPECT_EQ(back, dtype);
    EXPECT_GT(dtype_bytes(dtype), 0u);
  }
  Dtype unused;
  EXPECT_FALSE(parse_dtype("BF17", &unused));
}

TEST(Arena, ScopesReleaseAndPeakStays) {
  alignas(64) std::byte memory[1024];
  Arena arena(memory, sizeof memory);
  Tensor a = arena.alloc({3});
  {
    Arena::Scope scope(arena);
    Tensor b = arena.alloc({32});
    EXPECT_EQ(static_cast<std::byte*>(b.data) - static_cast<std::byte*>(a.data), 64);
  }
  EXPECT_EQ(arena.mark(), 64u);
  EXPECT_EQ(arena.peak(), 64u + 128u);
  EXPECT_DEATH(arena.alloc({300}), "arena of 1024 bytes");
}

}  // namespace
}  // namespace dg
