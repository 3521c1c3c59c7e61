// How much of a core's collectives is exposed: launches, or the host, are held up by them while the
// core neither works nor waits for the host's dispatch. Used under the lock of the core.
#pragma once

#include "collective_clock.h"

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace trn {

class Exposure {
 public:
  // The core works, or waits for a dispatch, from `from` to `to`.
  void busy(int64_t from, int64_t to, int64_t host_ns);
  // A collective is under way: it will not start before `arrival_ns`.
  void issued(int64_t arrival_ns) {
    used_ = true;
    under_way_.insert(arrival_ns);
  }
  void over(int64_t arrival_ns);
  void ended(const CollectivePtr& collective, int64_t host_ns);
  // Something that could begin at `host_ns` waits for `waits` first.
  static void hold(const Waits& waits, int64_t host_ns);

  // Of what has ended since the last reset, by row of the price; `open` are waits of streams on
  // which nothing has been launched since.
  std::map<int64_t, CollectiveTimes> rows(const Waits& open, int64_t host_ns) const;
  void reset();

  // What ends from now on, until `stop_log`, at most `limit` collectives.
  void start_log(size_t limit);
  std::vector<CollectivePtr> stop_log(const Waits& open, int64_t host_ns);

 private:
  int64_t uncovered(int64_t from, int64_t to) const;
  void settle(int64_t host_ns);
  void prune(int64_t host_ns);

  bool used_ = false;
  std::vector<std::pair<int64_t, int64_t>> busy_;  // disjoint, in order
  size_t most_ = 8192;                             // intervals before old ones are dropped
  std::multiset<int64_t> under_way_;
  std::vector<CollectivePtr> pending_;  // ended, and launches may still overlap them
  size_t most_pending_ = 64;            // before those that are over are settled
  std::map<int64_t, CollectiveTimes> settled_;
  std::vector<CollectivePtr> log_;
  size_t log_limit_ = 0;
};

}  // namespace trn
