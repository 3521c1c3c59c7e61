// Collectives over a segment. Each rank writes a piece into a place of its slot, and when all have,
// each reads what it needs from the others' slots. Long ones run as a pipeline of pieces: a rank
// works on the next pieces while the others catch up, and sleeps only when it is kLag pieces ahead.
#include "segment.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <utility>

namespace trn::collectives {
namespace {

constexpr size_t kSmallBytes = 32 << 10;  // up to here each rank reduces everything
constexpr size_t kLag = 2;                // steps between the stages of a piece
constexpr size_t kStages = 3;             // the most that a collective has
static_assert(kPlaces >= kStages * kLag, "a piece leaves its place before the place's next one");

// One stage of a collective, of the piece of a round in its place of the slots.
using Stage = std::function<void(size_t round, uint32_t place)>;

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
    segment_->ring_all();
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
    const uint32_t half = headers_++ & 1;  // nobody reads that of the call before last any more
    std::memcpy(segment_->header(rank_, half), mine.data(), mine.size());
    const std::optional<In> along = std::exchange(along_, std::nullopt);
    there_.reset();
    if (along) {
      there_ = turn_ % kPlaces;
      claim(*there_, wait);
      put({along->data, std::min(along->bytes, kPieceBytes)}, *there_);
      free_at_[*there_] = steps_ + 2;  // the step after this one reads it
    }
    advance();
    await(steps_, wait);
    for (int r = 0; r < size_; ++r)
      std::memcpy(all + size_t(r) * mine.size(), segment_->header(r, half), mine.size());
  }

  void exchange(std::span<const In> to, std::span<const Out> from, size_t largest,
                const Patience& wait) override {
    const size_t each = sub_slot();
    const auto take = [&](size_t round, uint32_t place) {
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut c = cut(from[r].bytes, round, each);
        if (c.bytes > 0)
          std::memcpy(from[r].data + c.at, segment_->slot(int(r), place) + size_t(rank_) * each,
                      c.bytes);
      }
    };
    run(rounds_for(largest, each), {spread(to, each), take}, wait);
  }

  void gather(In mine, std::span<const Out> from, int root, size_t largest,
              const Patience& wait) override {
    const auto show = [&](size_t round, uint32_t place) {
      const Cut c = cut(mine.bytes, round, kPieceBytes);
      put({mine.data + c.at, c.bytes}, place);
    };
    const auto take = [&](size_t round, uint32_t place) {
      if (root >= 0 && root != rank_) return;
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut other = cut(from[r].bytes, round, kPieceBytes);
        if (other.bytes > 0 && from[r].data != nullptr)
          std::memcpy(from[r].data + other.at, segment_->slot(int(r), place), other.bytes);
      }
    };
    run(rounds_for(largest, kPieceBytes), {show, take}, wait);
  }

  void reduce_scatter(std::span<const In> to, Out mine, const Reduction& reduction, size_t largest,
                      const Patience& wait) override {
    const size_t each = sub_slot() / reduction.width * reduction.width;
    const auto reduce = [&](size_t round, uint32_t place) {
      const Cut c = cut(mine.bytes, round, each);
      combine(mine.data + c.at, nullptr, place, size_t(rank_) * each, c.bytes, reduction);
    };
    run(rounds_for(largest, each), {spread(to, each), reduce}, wait);
  }

  void all_reduce(Out data, const Reduction& reduction, const Patience& wait) override {
    if (data.bytes > kSmallBytes) return all_reduce_by_shares(data, reduction, wait);
    const auto show = [&](size_t, uint32_t place) { put({data.data, data.bytes}, place); };
    const auto reduce = [&](size_t, uint32_t place) {
      combine(data.data, nullptr, place, 0, data.bytes, reduction);
    };
    run(1, {show, reduce}, wait);
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

  // Runs the stages of all rounds' pieces, which all ranks do in the same steps: a piece comes to
  // its next stage kLag steps after the one before, when that has ended on every rank. The first
  // piece may have gone with the headers, whose step was then its first stage.
  void run(size_t rounds, std::initializer_list<Stage> stages, const Patience& wait) {
    if (rounds == 0) return;
    const std::optional<uint32_t> there = std::exchange(there_, std::nullopt);
    const size_t lag = std::min(rounds, kLag), begun = there ? 1 : 0;
    const size_t length = lag * (stages.size() - 1) + 1;  // of a piece's way, in steps
    const uint32_t before = steps_ - uint32_t(begun), first = there ? *there : turn_ % kPlaces;
    for (size_t step = begun; step + 1 < rounds + length; ++step) {
      if (step >= lag) await(before + uint32_t(step - lag) + 1, wait);
      for (size_t s = 0; s < stages.size(); ++s) {
        const size_t round = step - s * lag;
        if (step < s * lag || round >= rounds) continue;
        const uint32_t place = uint32_t(first + round) % kPlaces;
        if (s == 0) claim(place, wait);
        stages.begin()[s](round, place);
        free_at_[place] = before + uint32_t(round + length);
      }
      advance();
    }
  }

  // Each rank reduces its share of each piece, and all take the others' shares.
  void all_reduce_by_shares(Out data, const Reduction& reduction, const Patience& wait) {
    const size_t width = reduction.width, each = kPieceBytes / width * width;
    struct Part {
      size_t at, bytes;
    };
    const auto part = [&](const Cut& c, int rank) {  // of a piece
      const Share share = share_of(c.bytes / width, rank, size_);
      return Part{share.first * width, share.count * width};
    };
    const auto show = [&](size_t round, uint32_t place) {
      const Cut c = cut(data.bytes, round, each);
      const Part mine = part(c, rank_);
      std::byte* const slot = segment_->slot(rank_, place);
      const size_t end = mine.at + mine.bytes;
      std::memcpy(slot, data.data + c.at, mine.at);
      std::memcpy(slot + end, data.data + c.at + end, c.bytes - end);
    };
    const auto reduce = [&](size_t round, uint32_t place) {
      const Cut c = cut(data.bytes, round, each);
      const Part mine = part(c, rank_);
      std::byte* const own = data.data + c.at + mine.at;
      combine(own, own, place, mine.at, mine.bytes, reduction);
      std::memcpy(segment_->slot(rank_, place) + mine.at, own, mine.bytes);
    };
    const auto take = [&](size_t round, uint32_t place) {
      const Cut c = cut(data.bytes, round, each);
      for (int r = 0; r < size_; ++r) {
        if (r == rank_) continue;
        const Part share = part(c, r);
        std::memcpy(data.data + c.at + share.at, segment_->slot(r, place) + share.at, share.bytes);
      }
    };
    run(rounds_for(data.bytes, each), {show, reduce, take}, wait);
  }

  // Puts what goes to each rank into a part of the slot.
  Stage spread(std::span<const In> to, size_t each) {
    return [this, to, each](size_t round, uint32_t place) {
      for (size_t r = 0; r < size_t(size_); ++r) {
        const Cut c = cut(to[r].bytes, round, each);
        if (c.bytes > 0)
          std::memcpy(segment_->slot(rank_, place) + r * each, to[r].data + c.at, c.bytes);
      }
    };
  }

  // `own` stands for what lies in this rank's own slot.
  void combine(std::byte* out, const std::byte* own, uint32_t place, size_t at, size_t bytes,
               const Reduction& reduction) {
    if (bytes == 0) return;
    const void* inputs[kMaxRanks];
    for (int r = 0; r < size_; ++r)
      inputs[r] = r == rank_ && own != nullptr ? own : segment_->slot(r, place) + at;
    reduction.combine(out, inputs, size_, bytes / reduction.width,
                      reduction.factors.empty() ? nullptr : reduction.factors.data());
  }

  void put(In piece, uint32_t place) {
    if (piece.bytes > 0) std::memcpy(segment_->slot(rank_, place), piece.data, piece.bytes);
  }

  void advance() {
    ++steps_;
    segment_->advance(rank_);
  }

  // Waits until all have done `steps`; throws Failure when one of those that have not is gone.
  void await(uint32_t steps, const Patience& wait) {
    if (segment_->all_have_done(steps)) return;
    segment_->await_all(rank_, steps, [&] {
      segment_->check_aborted();
      for (int r = 0; r < size_; ++r) {
        if (r != rank_ && !segment_->has_done(r, steps)) segment_->check_alive(r);
      }
      wait();
    });
  }

  // For the next piece, the place whose turn it is: when nobody reads it any more.
  void claim(uint32_t place, const Patience& wait) {
    ++turn_;
    await(free_at_[place], wait);
  }

  size_t sub_slot() const { return kPieceBytes / size_t(size_) / 64 * 64; }

  std::unique_ptr<Segment> segment_;
  const int owner_;
  uint32_t headers_ = 0, turn_ = 0;  // how many headers, and pieces, there were
  uint32_t steps_ = 0;               // that this rank has done
  uint32_t free_at_[kPlaces] = {};   // the steps after which nobody reads a place any more
  std::optional<In> along_;          // what travels with the next headers
  std::optional<uint32_t> there_;    // the place in which that of the last headers lies
  std::vector<Stash> stashes_;
};

}  // namespace

std::unique_ptr<Transport> over(std::unique_ptr<Segment> segment, int rank, int size) {
  return std::make_unique<Shared>(std::move(segment), rank, size);
}

}  // namespace trn::collectives
