// What every transport has by its exchange(): gathering and reductions. And the group of one.
#include "transport.h"

#include <cstring>

namespace trn::collectives {
namespace {

void copy(In from, Out to) {
  if (to.data != nullptr && from.bytes > 0 && to.data != from.data)
    std::memmove(to.data, from.data, from.bytes);
}

class Alone final : public Transport {
 public:
  Alone() : Transport(0, 1) {}
  const char* name() const override { return "none"; }
  void abort(const std::string&) override {}
  void headers(std::span<const std::byte> mine, std::byte* all, const Patience&) override {
    std::memcpy(all, mine.data(), mine.size());
  }
  void exchange(std::span<const In> to, std::span<const Out> from, size_t,
                const Patience&) override {
    copy(to[0], from[0]);
  }
  void send(In, int, Message, const Patience&) override {
    throw Failure("a rank cannot send to itself");
  }
  Message receive(Out, int, int, const Patience&) override {
    throw Failure("a rank cannot receive from itself");
  }
};

}  // namespace

void Transport::gather(In mine, std::span<const Out> from, int root, size_t largest,
                       const Patience& wait) {
  std::vector<In> to(size_t(size_), In{});
  std::vector<std::byte> unwanted;
  for (int r = 0; r < size_; ++r) {
    if (root < 0 || r == root) to[size_t(r)] = mine;
  }
  std::vector<Out> wanted(from.begin(), from.end());
  if (root >= 0 && root != rank_) wanted.assign(size_t(size_), Out{});
  exchange(to, wanted, largest, wait);
}

void Transport::reduce_scatter(std::span<const In> to, Out mine, const Reduction& reduction,
                               size_t largest, const Patience& wait) {
  std::vector<std::byte> received(mine.bytes * size_t(size_));
  std::vector<Out> from(size_t(size_), Out{});
  std::vector<const void*> inputs(size_t(size_), nullptr);
  for (size_t r = 0; r < size_t(size_); ++r) {
    from[r] = {received.data() + r * mine.bytes, mine.bytes};
    inputs[r] = from[r].data;
  }
  exchange(to, from, largest, wait);
  if (mine.bytes == 0) return;
  reduction.combine(mine.data, inputs.data(), size_, mine.bytes / reduction.width,
                    reduction.factors.empty() ? nullptr : reduction.factors.data());
}

void Transport::all_reduce(Out data, const Reduction& reduction, const Patience& wait) {
  const size_t elements = data.bytes / reduction.width;
  std::vector<In> to;
  std::vector<Out> shares;
  for (int r = 0; r < size_; ++r) {
    const Share share = share_of(elements, r, size_);
    const size_t first = share.first * reduction.width, bytes = share.count * reduction.width;
    to.push_back({data.data + first, bytes});
    shares.push_back({data.data + first, bytes});
  }
  const Out mine = shares[size_t(rank_)];
  std::vector<std::byte> sum(mine.bytes);
  const size_t largest = share_of(elements, 0, size_).count * reduction.width;
  reduce_scatter(to, {sum.data(), sum.size()}, reduction, largest, wait);
  gather({sum.data(), sum.size()}, shares, -1, largest, wait);
}

std::unique_ptr<Transport> alone() { return std::make_unique<Alone>(); }

}  // namespace trn::collectives
