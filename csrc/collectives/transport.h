// How the ranks of one group move bytes. No torch headers: a transport knows bytes, sizes and how
// two of them add.
//
// All members make the same calls in the same order. Sizes were compared by headers() before, so
// that no call waits for bytes which another rank does not send. To add a transport, derive from
// Transport: headers(), exchange() and the point-to-point calls are enough.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace trn::collectives {

// What the user is told; the group, the operation and its number are added above.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// All ranks have the same: nobody needs to be told.
struct Mismatch : Failure {
  using Failure::Failure;
};

struct In {
  const std::byte* data = nullptr;
  size_t bytes = 0;
};
struct Out {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

// Combines the ranks' values in rank order. `in` may hold `out` itself.
struct Reduction {
  size_t width = 1;  // bytes of an element
  void (*combine)(void* out, const void* const* in, int ranks, size_t elements,
                  const double* factors) = nullptr;
  std::vector<double> factors;  // one for each rank, of PREMUL_SUM; or empty
};

// One message between two ranks.
struct Message {
  uint64_t bytes = 0;
  int64_t arrival_ns = 0;  // simulated time at which the sender was ready
  int32_t tag = 0;
  int32_t dtype = 0;
  int32_t source = 0;
};

// Called while a wait lasts, at least each 100 ms; may throw to end it.
using Patience = std::function<void()>;

class Transport {
 public:
  Transport(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  virtual const char* name() const = 0;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // This rank's number in messages: its rank in the world.
  virtual void set_number(int64_t /*number*/) {}
  // What this rank does next, for the messages of ranks that wait for it; and that it is done.
  virtual void announce(uint64_t /*sequence*/, const std::string& /*what*/) {}
  virtual void announce_end() {}
  // Ends what all ranks wait for, with a reason; also called when the process ends.
  virtual void abort(const std::string& reason) = 0;
  // The ranks that have not begun what this one has announced and is in.
  virtual std::string late_ranks() const { return ""; }
  // Leaves the group: who waits for this rank later is told, with the reason if there is one.
  virtual void leave(const std::string& /*reason*/) {}
  // What is known of the other ranks, one line each, when a wait took too long.
  virtual std::string describe_ranks() const { return ""; }

  // The gather() or all_reduce() that follows the next headers() begins with `first`, which may
  // travel with them. All ranks say so, or none.
  virtual void send_along(In /*first*/) {}
  // all[r] becomes rank r's header; all are of one size.
  virtual void headers(std::span<const std::byte> mine, std::byte* all, const Patience& wait) = 0;
  // to[r] goes to rank r. `largest` bounds every piece on every rank.
  virtual void exchange(std::span<const In> to, std::span<const Out> from, size_t largest,
                        const Patience& wait) = 0;
  // Everybody's `mine` reaches rank `root`, or all ranks for -1. Null outputs are not written.
  virtual void gather(In mine, std::span<const Out> from, int root, size_t largest,
                      const Patience& wait);
  // mine = the reduction of the pieces that each rank has for this one.
  virtual void reduce_scatter(std::span<const In> to, Out mine, const Reduction& reduction,
                              size_t largest, const Patience& wait);
  // In place, everywhere.
  virtual void all_reduce(Out data, const Reduction& reduction, const Patience& wait);

  virtual void send(In data, int to, Message message, const Patience& wait) = 0;
  // Receives a message of `tag` from a rank, or from any for -1. Throws if the size differs.
  virtual Message receive(Out data, int from, int tag, const Patience& wait) = 0;

 protected:
  const int rank_, size_;
};

// The elements [first, first + count) of `elements` that rank `r` of `size` reduces.
struct Share {
  size_t first, count;
};
inline Share share_of(size_t elements, int r, int size) {
  const size_t each = elements / size_t(size), more = elements % size_t(size);
  const size_t n = size_t(r);
  return {n * each + (n < more ? n : more), each + (n < more ? 1 : 0)};
}

// A group of one.
std::unique_ptr<Transport> alone();

}  // namespace trn::collectives
