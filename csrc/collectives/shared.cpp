// Collectives over a segment, as loops over pieces: each rank writes its piece into its slot, all
// meet, each reads what it needs from the others' slots. Slots have two halves that take turns: who
// passes a barrier knows that everybody has read the half before last, so one barrier a piece is
// enough.
#include "segment.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace trn::collectives {
namespace {

constexpr size_t kSmallBytes = 32 << 10;  // up to here each rank reduces everything

size_t rounds_for(size_t bytes, size_t each) { return (bytes + each - 1) / each; }

// The bytes of `round` when `bytes` are cut into pieces of `each`.
struct Cut {
  size_t at, bytes;
};
Cut cut(size_t bytes, size_t round, size_t each) {
  const size_t at = std::min(bytes, round * each);
  return {at, std::min(bytes - at, each)};
}

class Shared final : public Transport {
 public:
  Shared(std::unique_ptr<Segment> segment, int rank, int size)
      : Transport(rank, size), segment_(std::move(segment)), owner_(getpid()) {
    stashes_.resize(size_t(size));
  }
  ~Shared() override { leave(""); }

  const char* name() const override { return "shm"; }
  void set_number(int64_t number) override { segment_->state(rank_).number = int32_t(number) + 1; }
  void announce(uint64_t sequence, const std::string& what) override {
    RankState& mine = segment_->state(rank_);
    mine.sequence = sequence;
    const size_t length = std::min(what.size(), sizeof mine.doing - 1);
    std::memcpy(mine.doing, what.data(), length);
    mine.doing[length] = 0;
    mine.stage = kIn;
  }
  void announce_end() override { segment_->state(rank_).stage = kFinished; }
  void abort(const std::string& reason) override {
    if (getpid() == owner_) segment_->abort(rank_, reason);
  }
  void leave(const std::string& reason) override {
    if (getpid() != owner_ || segment_->state(rank_).left != 0) return;  // a fork's copy
    RankState& mine = segment_->state(rank_);
    std::snprintf(mine.reason, sizeof mine.reason, "%s", reason.c_str());
    segment_->state(rank_).left = 1;
    for (int r = 0; r < size_; ++r) segment_->ring(r);
  }
  std::string late_ranks() const override {
    const RankState& mine = segment_->state(rank_);
    if (mine.stage.load() != kIn) return "";
    std::string out;
    for (int r = 0; r < size_; ++r) {
      if (segment_->state(r).sequence.load() >= mine.sequence.load()) continue;
      out += (out.empty() ? "" : ", ") + segment_->name_of(r);
    }
    return out;
  }
  std::string describe_ranks() const override {
    std::string out;
    for (int r = 0; r < size_; ++r) out += "\n  " + segment_->describe(r);
    return out;
  }

  void send_along(In first) override { along_ = first; }

  void headers(std::span<const std::byte> mine, std::byte* all, const Patience& wait) override {
    if (mine.size() > kHeaderBytes) throw Failure("a header is longer than its place");
    const uint32_t half = next();
    std::memcpy(segment_->header(rank_, half), mine.data(), mine.size());
    const std::optional<In> along = std::exchange(along_, std::nullopt);
    if (along) put(*along, half);
    there_.reset();
    meet(wait);
    if (along) there_ = half;
    for (int r = 0; r < size_; ++r)
      std::memcpy(all + size_t(r) * mine.size(), segment_->header(r, half), mine.size());
  }

  void exchange(std::span<const In> to, std::span<const Out> from, size_t largest,
                const Patience& wait) override {
    const size_t each = sub_slot();
    for (size_t round = 0; round < rounds_for(largest, each); ++round) {
      const uint32_t half = next();
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut c = cut(to[r].bytes, round, each);
        if (c.bytes > 0)
          std::memcpy(segment_->slot(rank_, half) + r * each, to[r].data + c.at, c.bytes);
      }
      meet(wait);
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut c = cut(from[r].bytes, round, each);
        if (c.bytes > 0)
          std::memcpy(from[r].data + c.at, segment_->slot(int(r), half) + size_t(rank_) * each,
                      c.bytes);
      }
    }
  }

  void gather(In mine, std::span<const Out> from, int root, size_t largest,
              const Patience& wait) override {
    for (size_t round = 0; round < rounds_for(largest, kPieceBytes); ++round) {
      const Cut c = cut(mine.bytes, round, kPieceBytes);
      const uint32_t half = show({mine.data + c.at, c.bytes}, wait);
      if (root >= 0 && root != rank_) continue;
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut other = cut(from[r].bytes, round, kPieceBytes);
        if (other.bytes > 0 && from[r].data != nullptr)
          std::memcpy(from[r].data + other.at, segment_->slot(int(r), half), other.bytes);
      }
    }
  }

  void reduce_scatter(std::span<const In> to, Out mine, const Reduction& reduction, size_t largest,
                      const Patience& wait) override {
    const size_t each = sub_slot() / reduction.width * reduction.width;
    for (size_t round = 0; round < rounds_for(largest, each); ++round) {
      const uint32_t half = next();
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut c = cut(to[r].bytes, round, each);
        if (c.bytes > 0)
          std::memcpy(segment_->slot(rank_, half) + r * each, to[r].data + c.at, c.bytes);
      }
      meet(wait);
      const Cut c = cut(mine.bytes, round, each);
      if (c.bytes > 0) combine(mine.data + c.at, half, size_t(rank_) * each, c.bytes, reduction);
    }
  }

  void all_reduce(Out data, const Reduction& reduction, const Patience& wait) override {
    const size_t each =
        (data.bytes <= kSmallBytes ? kSmallBytes : kPieceBytes) / reduction.width * reduction.width;
    for (size_t round = 0; round < rounds_for(data.bytes, each); ++round) {
      const Cut c = cut(data.bytes, round, each);
      const uint32_t half = show({data.data + c.at, c.bytes}, wait);
      if (data.bytes <= kSmallBytes) {
        combine(data.data + c.at, half, 0, c.bytes, reduction);
        continue;
      }
      // Each rank reduces its share into the other half, which then goes round.
      const uint32_t other = next();
      const size_t elements = c.bytes / reduction.width;
      const Share mine = share_of(elements, rank_, size_);
      combine(segment_->slot(rank_, other), half, mine.first * reduction.width,
              mine.count * reduction.width, reduction);
      meet(wait);
      for (int r = 0; r < size_; ++r) {
        const Share share = share_of(elements, r, size_);
        std::memcpy(data.data + c.at + share.first * reduction.width, segment_->slot(r, other),
                    share.count * reduction.width);
      }
    }
  }

  void send(In data, int to, Message message, const Patience& wait) override {
    Mailbox& box = segment_->mailbox(rank_, to);
    message.bytes = data.bytes;
    message.source = rank_;
    size_t at = 0;
    do {
      await([&] { return box.written.load() - box.taken.load() < kMailPieces; }, to, wait);
      const uint32_t place = box.written.load() % kMailPieces;
      const size_t bytes = std::min(data.bytes - at, kMailBytes);
      if (bytes > 0) std::memcpy(segment_->mail(rank_, to, place), data.data + at, bytes);
      box.pieces[place] = {message, uint32_t(bytes), uint32_t(at == 0)};
      box.written.fetch_add(1);
      segment_->ring(to);
      at += bytes;
    } while (at < data.bytes);
  }

  Message receive(Out data, int from, int tag, const Patience& wait) override {
    Message found;
    const auto here = [&] { return look_everywhere(data, from, tag, found, wait); };
    await(here, from, wait);
    return found;
  }

 private:
  struct Stashed {
    Message message;
    std::vector<std::byte> data;
  };
  struct Stash {  // messages of one sender that wait for a receiver of their tag
    std::mutex mutex;
    std::deque<Stashed> messages;
    Stash() = default;
    Stash(Stash&&) noexcept {}
  };

  bool look_everywhere(Out data, int from, int tag, Message& found, const Patience& wait) {
    for (int r = 0; r < size_; ++r) {
      if (r == rank_ || (from >= 0 && r != from)) continue;
      std::lock_guard<std::mutex> lock(stashes_[size_t(r)].mutex);
      if (look(r, tag, data, found, wait)) return true;
    }
    return false;
  }

  // Whether a message of `tag` from `r` was there; those of other tags are put aside.
  bool look(int r, int tag, Out data, Message& found, const Patience& wait) {
    auto& aside = stashes_[size_t(r)].messages;
    for (auto it = aside.begin(); it != aside.end(); ++it) {
      if (it->message.tag != tag) continue;
      check_size(it->message, data);
      if (data.bytes > 0) std::memcpy(data.data, it->data.data(), data.bytes);
      found = it->message;
      aside.erase(it);
      return true;
    }
    Mailbox& box = segment_->mailbox(r, rank_);
    while (box.written.load() != box.taken.load()) {
      const Message message = box.pieces[box.taken.load() % kMailPieces].message;
      const bool wanted = message.tag == tag && message.bytes == data.bytes;
      Stashed stashed{message, {}};
      Out place = data;
      if (!wanted) {
        stashed.data.resize(message.bytes);
        place = {stashed.data.data(), stashed.data.size()};
      }
      take(r, message, place, wait);
      found = message;
      if (wanted) return true;
      if (message.tag == tag) check_size(message, data);
      aside.push_back(std::move(stashed));
      segment_->ring(rank_);  // another thread may wait for it
    }
    return false;
  }

  void take(int r, const Message& message, Out data, const Patience& wait) {
    Mailbox& box = segment_->mailbox(r, rank_);
    size_t at = 0;
    do {
      await([&] { return box.written.load() != box.taken.load(); }, r, wait);
      const uint32_t place = box.taken.load() % kMailPieces;
      const size_t bytes = box.pieces[place].bytes;
      if (bytes > 0) std::memcpy(data.data + at, segment_->mail(r, rank_, place), bytes);
      box.taken.fetch_add(1);
      segment_->ring(r);
      at += bytes;
    } while (at < message.bytes);
  }

  void check_size(const Message& message, Out data) const {
    if (message.bytes == data.bytes) return;
    throw Failure(segment_->name_of(message.source) + " sent " + std::to_string(message.bytes) +
                  " bytes, " + segment_->name_of(rank_) + " receives " +
                  std::to_string(data.bytes) + ": give both sides tensors of one size and dtype");
  }

  // Waits for this rank's bell until `ready`, as long as `peer` is there.
  template <class Ready>
  void await(Ready ready, int peer, const Patience& wait) {
    for (;;) {
      const uint32_t seen = segment_->bell(rank_);
      if (ready()) return;
      segment_->await_bell(rank_, seen);
      if (ready()) return;
      try {
        look_at_peer(peer, wait);
      } catch (const Failure&) {  // its last words may have come meanwhile
        if (!ready()) throw;
      }
    }
  }

  // Throws when nobody is left to receive from; peer -1 is any.
  void look_at_peer(int peer, const Patience& wait) {
    segment_->check_aborted();
    std::string gone;
    int left = 0;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_ || (peer >= 0 && r != peer)) continue;
      try {
        segment_->check_alive(r);
        ++left;
      } catch (const Failure& failure) {
        gone = failure.what();
      }
    }
    if (left == 0) throw Failure(gone);
    wait();
  }

  void meet(const Patience& wait) {
    segment_->barrier([&] {
      segment_->check_aborted();
      for (int r = 0; r < size_; ++r) {
        if (r != rank_) segment_->check_alive(r);
      }
      wait();
    });
  }

  void combine(std::byte* out, uint32_t half, size_t at, size_t bytes, const Reduction& reduction) {
    if (bytes == 0) return;
    const void* inputs[kMaxRanks];
    for (int r = 0; r < size_; ++r) inputs[r] = segment_->slot(r, half) + at;
    reduction.combine(out, inputs, size_, bytes / reduction.width,
                      reduction.factors.empty() ? nullptr : reduction.factors.data());
  }

  void put(In piece, uint32_t half) {
    const size_t bytes = std::min(piece.bytes, kPieceBytes);
    if (bytes > 0) std::memcpy(segment_->slot(rank_, half), piece.data, bytes);
  }

  // The half in which each rank's slot holds its piece: where the headers took them along, that.
  uint32_t show(In piece, const Patience& wait) {
    if (there_) return *std::exchange(there_, std::nullopt);
    const uint32_t half = next();
    put(piece, half);
    meet(wait);
    return half;
  }

  uint32_t next() { return turn_++ & 1; }
  size_t sub_slot() const { return kPieceBytes / size_t(size_) / 64 * 64; }

  std::unique_ptr<Segment> segment_;
  const int owner_;
  uint32_t turn_ = 0;
  std::optional<In> along_;        // what travels with the next headers
  std::optional<uint32_t> there_;  // the half in which that of the last headers lies
  std::vector<Stash> stashes_;
};

}  // namespace

std::unique_ptr<Transport> over(std::unique_ptr<Segment> segment, int rank, int size) {
  return std::make_unique<Shared>(std::move(segment), rank, size);
}

}  // namespace trn::collectives
