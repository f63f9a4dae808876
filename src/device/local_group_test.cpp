#include "device/local_group.h"

#include <gtest/gtest.h>

#include <thread>

namespace dg {
namespace {

using std::chrono::milliseconds;

void on_threads(int ranks, const std::function<void(int)>& fn) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; r++) threads.emplace_back(fn, r);
  for (std::thread& t : threads) t.join();
}

TEST(LocalGroup, EveryRankGetsTheValuesOfAllInOrderManyTimes) {
  constexpr int kRanks = 4, kRounds = 2000;
  LocalGroup group(kRanks, milliseconds(30000));
  std::vector<int> wrong(kRanks);
  on_threads(kRanks, [&](int rank) {
    for (intptr_t round = 0; round < kRounds; round++) {
      auto all = group.exchange(rank, reinterpret_cast<void*>(round * kRanks + rank));
      if (!all.ok()) {
        wrong[static_cast<size_t>(rank)]++;
        return;
      }
      for (int r = 0; r < kRanks; r++)
        wrong[static_cast<size_t>(rank)] += (*all)[static_cast<size_t>(r)] != reinterpret_cast<void*>(round * kRanks + r);
    }
  });
  EXPECT_EQ(wrong, std::vector<int>(kRanks));
  EXPECT_FALSE(group.failed());
  EXPECT_TRUE(group.status().ok());
}

TEST(LocalGroup, AloneItNeverWaits) {
  LocalGroup group(1, milliseconds(1));
  int value = 0;
  auto all = group.exchange(0, &value);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(*all, std::vector<void*>{&value});
}

TEST(LocalGroup, ARankThatDoesNotComeFailsAll) {
  LocalGroup group(3, milliseconds(30));
  std::vector<std::string> messages(3);
  on_threads(2, [&](int rank) { messages[static_cast<size_t>(rank)] = group.exchange(rank, nullptr).error().message; });
  EXPECT_EQ(messages[0], messages[1]);
  EXPECT_NE(messages[0].find("s for rank 2: it hangs"), std::string::npos) << messages[0];
  EXPECT_TRUE(group.failed());
  EXPECT_EQ(group.exchange(2, nullptr).error().message, messages[0]);  // too late, and at once
  EXPECT_EQ(group.status().error().message, messages[0]);
}

TEST(LocalGroup, FailureWakesWhoWaits) {
  LocalGroup group(2, milliseconds(60000));
  const auto begin = std::chrono::steady_clock::now();
  std::string message;
  on_threads(2, [&](int rank) {
    if (rank == 0) {
      message = group.exchange(0, nullptr).error().message;
    } else {
      std::this_thread::sleep_for(milliseconds(20));
      group.fail(1, resource_error("no memory"));
      group.fail(1, resource_error("later ones do not count"));
    }
  });
  EXPECT_EQ(message, "rank 1 of 2: no memory");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

}  // namespace
}  // namespace dg
