// Shared memory of the ranks of one group on one host: how far each rank has come, a slot for each,
// a mailbox for each pair, and what each rank says of itself. Memory without a name (memfd): it
// goes with its last process, however that ends. Waits sleep in the kernel (futex); nothing spins,
// and who finds nobody asleep makes no system call.
#pragma once

#include "transport.h"

#include <atomic>
#include <cstdint>
#include <string>

namespace trn::collectives {

constexpr size_t kPieceBytes = 128 << 10;  // of a slot's place; chosen by measurement
constexpr uint32_t kPlaces = 8;            // of a slot
constexpr size_t kMailBytes = 64 << 10;    // of a message's piece
constexpr uint32_t kMailPieces = 2;        // of a mailbox
constexpr int kMaxRanks = 128;

enum Stage : uint32_t { kJoined, kIn, kFinished };

struct alignas(64) RankState {
  std::atomic<int32_t> pid;
  std::atomic<int32_t> number;  // its rank in the world, plus one; 0: not told
  std::atomic<uint64_t> born;   // start time of the process: a pid may be given out again
  std::atomic<uint64_t> sequence;
  std::atomic<uint32_t> left;   // 1: left the group or ended
  std::atomic<uint32_t> stage;  // a Stage, of what it is doing
  char doing[160];
  char reason[512];  // why it ended
};

struct alignas(64) Mailbox {
  std::atomic<uint32_t> written, taken;  // pieces
  struct Piece {
    Message message;
    uint32_t bytes;
    uint32_t first;
  } pieces[kMailPieces];
};

class Segment {
 public:
  // Makes the memory; `descriptor` stays open until close_descriptor().
  static std::unique_ptr<Segment> create(int size);
  // Maps that of another process of this host and user. Throws Failure with the reason.
  static std::unique_ptr<Segment> open(int size, int pid, int descriptor);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int descriptor() const { return descriptor_; }
  void close_descriptor();

  void join(int rank);
  RankState& state(int rank) { return control().ranks[rank]; }
  const RankState& state(int rank) const { return control().ranks[rank]; }

  std::byte* header(int rank, uint32_t half);
  std::byte* slot(int rank, uint32_t place);
  Mailbox& mailbox(int from, int to);
  std::byte* mail(int from, int to, uint32_t piece);

  // All ranks take the same steps. advance(): this rank has done one more.
  void advance(int rank);
  bool has_done(int rank, uint32_t steps) const;
  bool all_have_done(uint32_t steps) const;
  // Waits until every rank has done `steps` of them. `wait` is called each 100 ms.
  void await_all(int rank, uint32_t steps, const Patience& wait);
  // Rings for a receiver, and waits for a change of its bell since `seen`.
  void ring(int rank);
  uint32_t bell(int rank) const { return control().bells[rank].word.load(); }
  void await_bell(int rank, uint32_t seen);
  // Wakes all who wait for anything, to look around.
  void ring_all();

  void abort(int rank, const std::string& reason);
  // Throws Failure when a rank has aborted.
  void check_aborted() const;
  // Throws Failure when `rank` has left the group or its process has ended.
  void check_alive(int rank) const;
  std::string describe(int rank) const;
  std::string name_of(int rank) const;

 private:
  struct Bell {
    std::atomic<uint32_t> word, sleepers;
  };
  struct alignas(64) Progress {
    std::atomic<uint32_t> steps;
    std::atomic<uint32_t> bell;
    std::atomic<uint64_t> awaited;  // what it sleeps for: 2^32 + a number of steps; 0: it does not
  };
  struct Control {
    std::atomic<uint32_t> aborted;  // 1 + the rank that did
    char reason[512];
    Bell bells[kMaxRanks];
    Progress progress[kMaxRanks];
    RankState ranks[kMaxRanks];
  };
  Segment(int size, int descriptor);
  Control& control() { return *reinterpret_cast<Control*>(base_); }
  const Control& control() const { return *reinterpret_cast<const Control*>(base_); }

  const int size_;
  int descriptor_;
  std::byte* base_ = nullptr;
  size_t bytes_ = 0, headers_at_ = 0, slots_at_ = 0, boxes_at_ = 0, mail_at_ = 0;
};

constexpr size_t kHeaderBytes = 8192;  // of a rank's half, the most that headers() takes

// The transport over a segment that all ranks have joined.
std::unique_ptr<Transport> over(std::unique_ptr<Segment> segment, int rank, int size);

}  // namespace trn::collectives
