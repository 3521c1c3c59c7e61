// Collectives on the simulated clock of a core: when they are issued, what waits for them, and what
// they came to.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace trn {

// One collective or message that has ended.
struct Collective {
  int64_t start_ns = -1, end_ns = 0;
  int64_t row = -1;  // of its price
  std::string group{}, what{};
  uint64_t sequence = 0;
  int64_t arrival_ns = 0;              // of this rank
  std::vector<int64_t> arrivals_ns{};  // of all ranks
  // From when on something waits for its end, and how long the core then had nothing to do.
  int64_t held_ns = std::numeric_limits<int64_t>::max();
  int64_t exposed_ns = 0;
};
using CollectivePtr = std::shared_ptr<Collective>;

// A stream that was free at `from_ns` waits for the end.
struct Wait {
  CollectivePtr collective;
  int64_t from_ns;
};
using Waits = std::vector<Wait>;

// Collectives of one core since the start or the last reset.
struct CollectiveTimes {
  int64_t count = 0;
  int64_t active_ns = 0;   // from the last rank's arrival to the end
  int64_t exposed_ns = 0;  // of these, the core had nothing to do and something waited

  void add(const Collective& collective) {
    ++count;
    active_ns += collective.end_ns - collective.start_ns;
    exposed_ns += collective.exposed_ns;
  }
};

// What futures of collectives wait for: no work runs on it.
c10::Stream collective_stream(c10::DeviceIndex device);

struct CollectiveClock {
  // The host issues a collective on `stream`; when both are ready for it.
  static int64_t issue(c10::Stream stream) noexcept;
  // A program that the core runs issues it: no dispatch.
  static int64_t reach(c10::Stream stream) noexcept;
  // What was issued for `arrival_ns` has ended, or failed (null).
  static void ended(c10::DeviceIndex device, int64_t arrival_ns, const CollectivePtr& collective);
  // The stream waits for the end of collectives.
  static void wait(c10::Stream stream, const std::vector<CollectivePtr>& collectives);
  // What an event recorded on the collectives' stream stands for next.
  static void set(c10::DeviceIndex device, const std::vector<CollectivePtr>& collectives);

  // What events pass on: the collectives that a stream waits for with nothing launched since.
  static Waits waits(c10::Stream stream);
  static void wait(c10::Stream stream, const Waits& waits);

  static std::map<int64_t, CollectiveTimes> rows(c10::DeviceIndex device);  // by row of the price
  static void start_log(c10::DeviceIndex device, size_t limit);
  static std::vector<CollectivePtr> stop_log(c10::DeviceIndex device);
};

}  // namespace trn
