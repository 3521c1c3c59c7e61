// See graph_schedule.h.
#include "graph_schedule.h"

#include "stream.h"

#include <utility>

namespace trn {
namespace {

thread_local GraphSchedule* running = nullptr;

}  // namespace

GraphSchedule::GraphSchedule(c10::DeviceIndex device, std::vector<GraphStep> steps)
    : device_(device), steps_(std::move(steps)), outer_(std::exchange(running, this)) {}

GraphSchedule::~GraphSchedule() { running = outer_; }

GraphSchedule* GraphSchedule::current() noexcept { return running; }

int64_t GraphSchedule::arrive() {
  while (next_ < steps_.size()) {
    const GraphStep& step = steps_[next_++];
    if (step.kind == GraphStep::kIssue) break;
    run(step);
  }
  return CollectiveClock::reach(current_stream(device_));
}

void GraphSchedule::finish() {
  while (next_ < steps_.size()) run(steps_[next_++]);
}

void GraphSchedule::run(const GraphStep& step) {
  if (step.kind == GraphStep::kLaunch) return Ledger::of(device_).launch(step.row);
  if (step.kind == GraphStep::kIssue || size_t(step.collective) >= ends_.size()) return;
  CollectiveClock::wait(current_stream(device_), ends_[size_t(step.collective)]());
}

}  // namespace trn
