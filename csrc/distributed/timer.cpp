// The clock of DistributedDataParallel's statistics: simulated time.
#include "runtime/ledger.h"
#include "runtime/stream.h"

#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

namespace trn {

class TrnTimer final : public c10d::Timer {
 public:
  explicit TrnTimer(c10::Device device) : device_(device) {}
  void record(Event event) override {
    getTimeRef(event) = SimulatedClock::stream_ns(current_stream(device_.index()));
  }
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const int64_t from = getTimeRef(start), to = getTimeRef(end);
    if (from == c10d::kUnsetTime || to == c10d::kUnsetTime || to < from) return std::nullopt;
    return to - from;
  }

 private:
  const c10::Device device_;
};

}  // namespace trn

namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kPrivateUse1, trn::TrnTimer);
}  // namespace c10d
