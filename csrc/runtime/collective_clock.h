// Collectives on the simulated clock of a core: when they are issued, what waits for them, and what
// they came to.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <map>

namespace trn {

// Collectives of one core since the start or the last reset.
struct CollectiveTimes {
  int64_t count = 0;
  int64_t active_ns = 0;   // from the last rank's arrival to the end
  int64_t exposed_ns = 0;  // of these, streams waited
};

// When one collective ran, and the row of its price.
struct CollectiveSpan {
  int64_t start_ns = -1, end_ns = 0, row = -1;
};

// What futures of collectives wait for: no work runs on it.
c10::Stream collective_stream(c10::DeviceIndex device);

struct CollectiveClock {
  // The host issues a collective on `stream`; when both are ready for it.
  static int64_t issue(c10::Stream stream) noexcept;
  static void count(c10::DeviceIndex device, int64_t row, int64_t ns) noexcept;
  // The stream waits for the end of a collective.
  static void wait(c10::Stream stream, const CollectiveSpan& span) noexcept;
  // What an event recorded on the collectives' stream stands for next.
  static void set(c10::DeviceIndex device, const CollectiveSpan& span) noexcept;
  static CollectiveSpan get(c10::DeviceIndex device) noexcept;

  static CollectiveTimes times(c10::DeviceIndex device);
  static std::map<int64_t, CollectiveTimes> rows(c10::DeviceIndex device);  // by row of the price
};

}  // namespace trn
