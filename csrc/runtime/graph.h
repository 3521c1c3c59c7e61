// torch.accelerator.Graph on trn. What a graph holds and how it is replayed is Python's:
// torch_trn_emu/trn/graphs.py.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace trn {

// Each is told the number of the graph.
struct GraphHooks {
  std::function<void(int64_t)> begin, end, replay, reset;
  std::function<void(int64_t, const std::string& path)> dump;
};
void set_graph_hooks(GraphHooks hooks);
bool capturing();  // whether a graph is being captured: all streams of the process are in it

}  // namespace trn
