// Addresses of one on-chip memory, per partition: a new buffer goes where the memory was left
// longest ago. isa/arena.py is the twin of this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace trn::timing {

class Arena {
 public:
  struct Placed {
    std::size_t buffer;
    std::int64_t bytes;
    std::int64_t free_from = 0;  // who held the memory before is done
  };

  explicit Arena(std::int64_t size) : size_(size) {}

  // Places the buffers of a part, the largest first, and fills in `free_from`.
  void place(std::size_t part, std::vector<Placed>& buffers) {
    std::stable_sort(buffers.begin(), buffers.end(),
                     [](const Placed& a, const Placed& b) { return a.bytes > b.bytes; });
    const std::vector<Held> before = held_;
    for (Placed& b : buffers) {
      if (!place(part, b)) {
        clear(part, before, buffers);
        return;
      }
    }
  }

  // The part's buffer was used until `time`.
  void used(std::size_t part, std::size_t buffer, std::int64_t time) {
    for (Held& h : held_) {
      if (h.part == part && h.buffer == buffer) h.done = time;
    }
  }

  void shift(std::int64_t delta) {
    for (Held& h : held_) h.done += delta;
  }

 private:
  struct Held {
    std::int64_t start, end;
    std::size_t part, buffer;
    std::int64_t done;
  };

  static bool overlaps(const Held& h, std::int64_t start, std::int64_t end) {
    return h.start < end && h.end > start;
  }

  bool place(std::size_t part, Placed& b) {
    constexpr std::int64_t kNone = -1;
    std::int64_t best = kNone, best_age = 0;
    const auto consider = [&](std::int64_t start) {
      if (start + b.bytes > size_) return;
      std::int64_t age = -1;  // the latest part that held some of it
      for (const Held& h : held_) {
        if (!overlaps(h, start, start + b.bytes)) continue;
        if (h.part == part) return;
        age = std::max(age, static_cast<std::int64_t>(h.part));
      }
      if (best == kNone || age < best_age || (age == best_age && start < best)) {
        best = start;
        best_age = age;
      }
    };
    consider(0);
    for (const Held& h : held_) consider(h.end);
    if (best == kNone) return false;
    take(best, best + b.bytes, b);
    held_.push_back(Held{best, best + b.bytes, part, b.buffer, 0});
    return true;
  }

  void take(std::int64_t start, std::int64_t end, Placed& b) {
    std::vector<Held> kept;
    for (const Held& h : held_) {
      if (!overlaps(h, start, end)) {
        kept.push_back(h);
        continue;
      }
      b.free_from = std::max(b.free_from, h.done);
      if (h.start < start) kept.push_back(Held{h.start, start, h.part, h.buffer, h.done});
      if (h.end > end) kept.push_back(Held{end, h.end, h.part, h.buffer, h.done});
    }
    held_ = std::move(kept);
  }

  // Everything before is done first: what was left did not hold the part in one piece each.
  void clear(std::size_t part, const std::vector<Held>& before, std::vector<Placed>& buffers) {
    std::int64_t done = 0, start = 0;
    for (const Held& h : before) done = std::max(done, h.done);
    held_.clear();
    for (Placed& b : buffers) {
      b.free_from = done;
      held_.push_back(Held{start, start + b.bytes, part, b.buffer, 0});
      start += b.bytes;
    }
  }

  std::int64_t size_;
  std::vector<Held> held_;
};

}  // namespace trn::timing
