// What the collectives ask of Python; set once by bind.cpp.
#pragma once

#include "collectives/transport.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>
#include <vector>

namespace trn {

// The modelled duration of one collective on a group's links.
struct CollectivePrice {
  int64_t ns = 0;
  int64_t row = -1;  // Python's number for its algorithm and links
};

struct CollectiveHooks {
  // A gloo group over the same ranks.
  std::function<c10::intrusive_ptr<c10d::Backend>(c10::intrusive_ptr<c10d::Store>, int rank,
                                                  int size, std::chrono::milliseconds timeout)>
      make_gloo;
  // The price of an operation that moves `bytes` among global `ranks`; `in_graph`: a compiled
  // program issues it.
  std::function<CollectivePrice(const char* op, int64_t bytes, const std::vector<int64_t>& ranks,
                                bool in_graph)>
      price;
  // Throws if the user interrupts. Called while a wait of the calling thread lasts.
  std::function<void()> check_interrupt;
  // Runs a wait that does not need Python, letting other threads have it.
  std::function<void(const std::function<void()>&)> without_python;
  std::string backend = "trn";     // what users call it
  std::string transport = "auto";  // auto, shm or gloo
};

CollectiveHooks& collective_hooks();

}  // namespace trn
