// LoadPlacement: which memory node the rows of a matrix belong on. Pages lie on the node of the thread that touches them
// first, and worker i of n of the thread pool takes the i-th contiguous share of a product's rows, so loading gives each row
// range to a thread of the node whose worker will read it. With one node, or workers that are not pinned, it does nothing.
#pragma once
#include <cstdint>
#include <vector>

#include "base/topology.h"

namespace dg {

class LoadPlacement {
 public:
  LoadPlacement() = default;  // one node, no binding
  // `readers` workers, worker i pinned to core i of the topology (as ThreadPool does; more readers than cores: not pinned).
  LoadPlacement(const Topology& topology, int readers);

  bool active() const { return cpus_.size() > 1; }
  int nodes() const { return active() ? static_cast<int>(cpus_.size()) : 1; }
  int readers() const { return static_cast<int>(node_of_reader_.size()); }
  // The node (index below nodes()) of the reader of the middle one of rows [first, first + rows) of `out`.
  int node_of_rows(int64_t first, int64_t rows, int64_t out) const;
  // Hardware threads of the readers' cores of a node, for pin_current_thread.
  const std::vector<int>& cpus(int node) const { return cpus_[static_cast<size_t>(node)]; }
  // Which nodes loader `thread` of `threads` fills: with fewer threads than nodes one fills several, one after the other.
  std::vector<int> nodes_of_thread(int thread, int threads) const;

 private:
  std::vector<int> node_of_reader_;
  std::vector<std::vector<int>> cpus_;  // by node that has a reader
};

}  // namespace dg
