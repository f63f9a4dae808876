#include "app/open_ranks.h"

#include <fmt/core.h>

#include <mutex>
#include <system_error>
#include <thread>

namespace dg {

Result<void> for_ranks(int ranks, LocalGroup* group, const std::function<Result<void>(int)>& fn, const std::function<void()>& failed) {
  if (ranks == 1) return fn(0);
  CHECK(group);
  std::mutex mutex;
  Result<void> first;
  auto fail = [&](int rank, const Error& error) {
    {
      std::lock_guard lock(mutex);
      if (!first.ok()) return;  // a consequence, or the same fault on every rank
      first = error;
    }
    group->fail(rank, error);
    if (failed) failed();
  };
  auto work = [&](int rank) {
    Result<void> done = fn(rank);
    if (!done.ok()) fail(rank, done.error());
  };
  std::vector<std::thread> threads;
  for (int r = 1; r < ranks; r++) {
    try {
      threads.emplace_back(work, r);
    } catch (const std::system_error& e) {
      fail(r, resource_error(fmt::format("no thread for rank {} of {}: {}", r, ranks, e.what())));
      break;
    }
  }
  work(0);
  for (std::thread& t : threads) t.join();
  return first;
}

}  // namespace dg
