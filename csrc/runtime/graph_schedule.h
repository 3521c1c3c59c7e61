// A compiled graph that takes part in collectives: what its core runs, issues and waits for, in
// order. The host code computes the values in an order of its own; when it issues a collective, the
// core's clock is taken to the place where the schedule does.
#pragma once

#include "collective_clock.h"
#include "ledger.h"

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace trn {

struct GraphStep {
  enum Kind { kLaunch, kIssue, kWait } kind;
  LaunchRow* row;      // of a launch
  int64_t collective;  // what a wait waits for, by its place among the issued
};

class GraphSchedule {
 public:
  // Waits until a collective's values are there, and gives it; what one issue came to.
  using Ends = std::function<std::vector<CollectivePtr>()>;

  // Of this thread, until it is destroyed. Without steps the collectives go before the graph.
  GraphSchedule(c10::DeviceIndex device, std::vector<GraphStep> steps);
  ~GraphSchedule();
  GraphSchedule(const GraphSchedule&) = delete;
  GraphSchedule& operator=(const GraphSchedule&) = delete;

  static GraphSchedule* current() noexcept;  // null outside of compiled graphs

  c10::DeviceIndex device() const { return device_; }
  bool empty() const { return steps_.empty(); }
  // Runs what comes before the next issue; gives its arrival.
  int64_t arrive();
  void issued(Ends ends) { ends_.push_back(std::move(ends)); }
  // Runs what is left.
  void finish();

 private:
  void run(const GraphStep& step);

  const c10::DeviceIndex device_;
  const std::vector<GraphStep> steps_;
  GraphSchedule* const outer_;
  size_t next_ = 0;
  std::vector<Ends> ends_;
};

}  // namespace trn
