// See exposure.h. No launch begins before the host's time: a collective that ended before it is
// settled, and what the core did before all that are not settled is forgotten.
#include "exposure.h"

#include <algorithm>

namespace trn {
namespace {

int64_t held_from(const Collective& collective, const Waits& open, int64_t host_ns) {
  int64_t from = collective.held_ns;
  for (const Wait& wait : open) {
    if (wait.collective.get() == &collective)
      from = std::min(from, std::max(wait.from_ns, host_ns));
  }
  return from;
}

}  // namespace

void Exposure::busy(int64_t from, int64_t to, int64_t host_ns) {
  if (!used_ || to <= from) return;
  size_t first = busy_.size();
  while (first > 0 && busy_[first - 1].second >= from) --first;
  size_t last = first;
  for (; last < busy_.size() && busy_[last].first <= to; ++last) {
    from = std::min(from, busy_[last].first);
    to = std::max(to, busy_[last].second);
  }
  const auto at = busy_.begin() + std::ptrdiff_t(first);
  if (first == last) {
    busy_.insert(at, {from, to});
    if (busy_.size() > most_) prune(host_ns);
    return;
  }
  *at = {from, to};
  busy_.erase(at + 1, busy_.begin() + std::ptrdiff_t(last));
}

void Exposure::prune(int64_t host_ns) {
  settle(host_ns);
  int64_t horizon = host_ns;
  if (!under_way_.empty()) horizon = std::min(horizon, *under_way_.begin());
  for (const auto& collective : pending_) horizon = std::min(horizon, collective->start_ns);
  std::erase_if(busy_, [&](const auto& interval) { return interval.second <= horizon; });
  most_ = std::max(size_t{8192}, 2 * busy_.size());
}

int64_t Exposure::uncovered(int64_t from, int64_t to) const {
  if (from >= to) return 0;
  int64_t left = to - from;
  auto at = std::lower_bound(busy_.begin(), busy_.end(), from,
                             [](const auto& interval, int64_t ns) { return interval.second < ns; });
  for (; at != busy_.end() && at->first < to; ++at)
    left -= std::max(int64_t{0}, std::min(to, at->second) - std::max(from, at->first));
  return left;
}

void Exposure::over(int64_t arrival_ns) {
  if (const auto found = under_way_.find(arrival_ns); found != under_way_.end())
    under_way_.erase(found);
}

void Exposure::ended(const CollectivePtr& collective, int64_t host_ns) {
  pending_.push_back(collective);
  if (log_.size() < log_limit_) log_.push_back(collective);
  if (pending_.size() <= most_pending_) return;
  settle(host_ns);
  most_pending_ = std::max(size_t{64}, 2 * pending_.size());
}

void Exposure::hold(const Waits& waits, int64_t host_ns) {
  for (const Wait& wait : waits) {
    int64_t& held = wait.collective->held_ns;
    held = std::min(held, std::max(wait.from_ns, host_ns));
  }
}

void Exposure::settle(int64_t host_ns) {
  std::erase_if(pending_, [&](const CollectivePtr& collective) {
    if (collective->end_ns > host_ns) return false;
    collective->exposed_ns = uncovered(collective->held_ns, collective->end_ns);
    settled_[collective->row].add(*collective);
    return true;
  });
}

std::map<int64_t, CollectiveTimes> Exposure::rows(const Waits& open, int64_t host_ns) const {
  auto all = settled_;
  for (const auto& collective : pending_) {
    Collective now = *collective;
    now.exposed_ns = uncovered(held_from(*collective, open, host_ns), now.end_ns);
    all[now.row].add(now);
  }
  return all;
}

void Exposure::reset() {
  pending_.clear();
  settled_.clear();
}

void Exposure::start_log(size_t limit) {
  log_.clear();
  log_limit_ = limit;
}

std::vector<CollectivePtr> Exposure::stop_log(const Waits& open, int64_t host_ns) {
  for (const auto& collective : pending_)
    collective->exposed_ns = uncovered(held_from(*collective, open, host_ns), collective->end_ns);
  log_limit_ = 0;
  return std::exchange(log_, {});
}

}  // namespace trn
