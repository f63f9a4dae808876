#include "model/load_placement.h"

#include <algorithm>

namespace dg {

LoadPlacement::LoadPlacement(const Topology& topology, int readers) {
  if (readers < 2 || readers > static_cast<int>(topology.cores.size())) return;
  std::vector<int> index(topology.nodes.size(), -1);  // of a node among those that have a reader
  for (int i = 0; i < readers; i++) {
    const Core& core = topology.cores[static_cast<size_t>(i)];
    auto node = static_cast<size_t>(core.node);
    if (node >= index.size()) return;
    if (index[node] < 0) {
      index[node] = static_cast<int>(cpus_.size());
      cpus_.emplace_back();
    }
    node_of_reader_.push_back(index[node]);
    std::vector<int>& cpus = cpus_[static_cast<size_t>(index[node])];
    cpus.insert(cpus.end(), core.cpus.begin(), core.cpus.end());
  }
}

int LoadPlacement::node_of_rows(int64_t first, int64_t rows, int64_t out) const {
  if (!active() || out <= 0) return 0;
  const auto count = static_cast<int64_t>(node_of_reader_.size());
  int64_t reader = (first + rows / 2) * count / out;
  return node_of_reader_[static_cast<size_t>(std::clamp<int64_t>(reader, 0, count - 1))];
}

std::vector<int> LoadPlacement::nodes_of_thread(int thread, int threads) const {
  std::vector<int> mine;
  const int count = nodes();
  if (threads >= count) return {static_cast<int>(static_cast<int64_t>(thread) * count / threads)};
  for (int node = 0; node < count; node++)
    if (static_cast<int64_t>(node) * threads / count == thread) mine.push_back(node);
  return mine;
}

}  // namespace dg
