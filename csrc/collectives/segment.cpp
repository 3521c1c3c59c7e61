// See segment.h.
#include "segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>

namespace trn::collectives {
namespace {

constexpr long kLookNs = 100'000'000;  // how long a wait sleeps before it looks around

uint32_t* address(std::atomic<uint32_t>& word) { return reinterpret_cast<uint32_t*>(&word); }

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  const timespec limit{0, kLookNs};
  syscall(SYS_futex, address(word), FUTEX_WAIT, value, &limit, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, address(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void write(char* text, size_t room, const std::string& what) {
  std::snprintf(text, room, "%s", what.c_str());
}

// State letter and start time of a process, or '-' when there is none.
struct Process {
  char state = '-';
  uint64_t born = 0;
};
Process look_at(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return {};
  const size_t end = line.rfind(')');  // the name before may hold anything
  if (end == std::string::npos || end + 2 >= line.size()) return {};
  Process out{line[end + 2], 0};
  size_t at = end + 2;
  for (int field = 3; field < 22 && at != std::string::npos; ++field) at = line.find(' ', at + 1);
  if (at != std::string::npos) out.born = std::strtoull(line.c_str() + at + 1, nullptr, 10);
  return out;
}

bool ended(const RankState& rank) {
  const Process process = look_at(rank.pid.load());
  return process.state == '-' || process.state == 'Z' || process.state == 'X' ||
         process.born != rank.born.load();
}

size_t page(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

Segment::Segment(int size, int descriptor) : size_(size), descriptor_(descriptor) {
  const size_t n = size_t(size);
  headers_at_ = page(sizeof(Control));
  slots_at_ = headers_at_ + n * 2 * kHeaderBytes;
  boxes_at_ = slots_at_ + n * kPlaces * kPieceBytes;
  mail_at_ = page(boxes_at_ + n * n * sizeof(Mailbox));
  bytes_ = mail_at_ + n * n * kMailPieces * kMailBytes;
}

std::unique_ptr<Segment> Segment::create(int size) {
  const int descriptor = memfd_create("torch_trn_emu", MFD_CLOEXEC);
  if (descriptor < 0) throw Failure(std::string("memfd_create: ") + std::strerror(errno));
  std::unique_ptr<Segment> out(new Segment(size, descriptor));
  if (ftruncate(descriptor, off_t(out->bytes_)) != 0)
    throw Failure(std::string("ftruncate: ") + std::strerror(errno));
  void* base = mmap(nullptr, out->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) throw Failure(std::string("mmap: ") + std::strerror(errno));
  out->base_ = static_cast<std::byte*>(base);  // zeros, which all atomics here start with
  return out;
}

std::unique_ptr<Segment> Segment::open(int size, int pid, int descriptor) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(descriptor);
  const int mine = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (mine < 0) throw Failure("cannot open " + path + ": " + std::strerror(errno));
  std::unique_ptr<Segment> out(new Segment(size, mine));
  void* base = mmap(nullptr, out->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, mine, 0);
  if (base == MAP_FAILED) throw Failure(std::string("mmap: ") + std::strerror(errno));
  out->base_ = static_cast<std::byte*>(base);
  out->close_descriptor();
  return out;
}

Segment::~Segment() {
  if (base_ != nullptr) munmap(base_, bytes_);
  close_descriptor();
}

void Segment::close_descriptor() {
  if (descriptor_ >= 0) close(descriptor_);
  descriptor_ = -1;
}

void Segment::join(int rank) {
  RankState& mine = state(rank);
  mine.pid = getpid();
  mine.born = look_at(getpid()).born;
}

std::byte* Segment::header(int rank, uint32_t half) {
  return base_ + headers_at_ + (size_t(rank) * 2 + half) * kHeaderBytes;
}

std::byte* Segment::slot(int rank, uint32_t place) {
  return base_ + slots_at_ + (size_t(rank) * kPlaces + place) * kPieceBytes;
}

Mailbox& Segment::mailbox(int from, int to) {
  return reinterpret_cast<Mailbox*>(base_ + boxes_at_)[from * size_ + to];
}

std::byte* Segment::mail(int from, int to, uint32_t piece) {
  return base_ + mail_at_ + (size_t(from * size_ + to) * kMailPieces + piece) * kMailBytes;
}

bool Segment::has_done(int rank, uint32_t steps) const {
  return int32_t(control().progress[rank].steps.load() - steps) >= 0;  // the count may wrap
}

bool Segment::all_have_done(uint32_t steps) const {
  for (int r = 0; r < size_; ++r) {
    if (!has_done(r, steps)) return false;
  }
  return true;
}

// The last to come to what a sleeper awaits wakes it: a sleeper says what it awaits before it looks
// once more, and all of this is in one order.
void Segment::advance(int rank) {
  Control& c = control();
  c.progress[rank].steps.fetch_add(1);
  for (int r = 0; r < size_; ++r) {
    Progress& other = c.progress[r];
    const uint64_t awaited = other.awaited.load();
    if (awaited == 0 || !all_have_done(uint32_t(awaited))) continue;
    other.bell.fetch_add(1);
    wake(other.bell);
  }
}

void Segment::await_all(int rank, uint32_t steps, const Patience& wait) {
  Progress& mine = control().progress[rank];
  while (!all_have_done(steps)) {
    const uint32_t seen = mine.bell.load();
    mine.awaited.store((uint64_t(1) << 32) | steps);
    if (!all_have_done(steps)) sleep_while(mine.bell, seen);
    mine.awaited.store(0);
    if (all_have_done(steps)) return;
    try {
      wait();
    } catch (const Failure&) {  // who came last may have left already
      if (!all_have_done(steps)) throw;
    }
  }
}

void Segment::ring(int rank) {
  Bell& bell = control().bells[rank];
  bell.word.fetch_add(1);
  if (bell.sleepers.load() != 0) wake(bell.word);
}

void Segment::await_bell(int rank, uint32_t seen) {
  Bell& bell = control().bells[rank];
  bell.sleepers.fetch_add(1);
  sleep_while(bell.word, seen);
  bell.sleepers.fetch_sub(1);
}

void Segment::ring_all() {
  for (int r = 0; r < size_; ++r) {
    ring(r);
    std::atomic<uint32_t>& bell = control().progress[r].bell;
    bell.fetch_add(1);
    wake(bell);
  }
}

void Segment::abort(int rank, const std::string& reason) {
  Control& c = control();
  uint32_t nobody = 0;
  if (c.aborted.load() == 0) write(c.reason, sizeof c.reason, reason);
  if (!c.aborted.compare_exchange_strong(nobody, uint32_t(rank) + 1)) return;
  ring_all();
}

void Segment::check_aborted() const {
  if (control().aborted.load() != 0) throw Failure(control().reason);
}

void Segment::check_alive(int rank) const {
  const RankState& other = state(rank);
  const std::string name = name_of(rank);
  if (other.left.load() != 0)
    throw Failure(name + " " + (other.reason[0] != 0 ? other.reason : "has left the group"));
  if (other.pid.load() != 0 && ended(other))
    throw Failure(name + " (pid " + std::to_string(other.pid.load()) +
                  ") ended unexpectedly: killed, or crashed");
}

std::string Segment::name_of(int rank) const {
  const int32_t number = state(rank).number.load();
  return "rank " + std::to_string(number == 0 ? rank : number - 1);
}

std::string Segment::describe(int rank) const {
  const RankState& r = state(rank);
  const Process process = look_at(r.pid.load());
  const uint32_t stage = r.stage.load();
  std::string text = name_of(rank) + ": ";
  if (stage == kJoined)
    text += "joined the group";
  else
    text += std::string(stage == kIn ? "in " : "last finished ") + r.doing;
  if (process.state == 'T' || process.state == 't')
    text += "; its process is stopped (SIGCONT resumes it)";
  else if (r.pid.load() != 0 && ended(r))
    text += "; its process has ended";
  return text;
}

}  // namespace trn::collectives
