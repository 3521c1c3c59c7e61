// A transport over torch's gloo, for ranks on several hosts: bytes as uint8 tensors.
#include "rendezvous.h"

#include <ATen/Functions.h>

#include <cstring>
#include <numeric>

namespace trn {
namespace {

using collectives::Failure;
using collectives::In;
using collectives::Message;
using collectives::Out;
using collectives::Patience;

at::Tensor bytes_at(void* data, size_t bytes) {
  return at::from_blob(data, {int64_t(bytes)}, at::TensorOptions().dtype(at::kByte));
}

at::Tensor room_for(size_t bytes) {
  return at::empty({int64_t(bytes)}, at::TensorOptions().dtype(at::kByte).device(at::kCPU));
}

class OverGloo final : public collectives::Transport {
 public:
  explicit OverGloo(c10::intrusive_ptr<c10d::Backend> gloo)
      : Transport(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}

  const char* name() const override { return "gloo"; }
  void abort(const std::string&) override { gloo_->abort(); }

  void headers(std::span<const std::byte> mine, std::byte* all, const Patience&) override {
    at::Tensor in = bytes_at(const_cast<std::byte*>(mine.data()), mine.size());
    at::Tensor out = bytes_at(all, mine.size() * size_t(size_));
    await([&] { return gloo_->_allgather_base(out, in); });
  }

  void exchange(std::span<const In> to, std::span<const Out> from, size_t largest,
                const Patience&) override {
    if (largest == 0) return;
    std::vector<int64_t> sent, received;
    for (const In& piece : to) sent.push_back(int64_t(piece.bytes));
    for (const Out& piece : from) received.push_back(int64_t(piece.bytes));
    at::Tensor in = room_for(sum(sent)), out = room_for(sum(received));
    auto* at = in.data_ptr<uint8_t>();
    for (const In& piece : to) {
      if (piece.bytes > 0) std::memcpy(at, piece.data, piece.bytes);
      at += piece.bytes;
    }
    await([&] { return gloo_->alltoall_base(out, in, received, sent); });
    at = out.data_ptr<uint8_t>();
    for (const Out& piece : from) {
      if (piece.bytes > 0 && piece.data != nullptr) std::memcpy(piece.data, at, piece.bytes);
      at += piece.bytes;
    }
  }

  void send(In data, int to, Message message, const Patience&) override {
    message.bytes = data.bytes;
    message.source = rank_;
    std::vector<at::Tensor> header{bytes_at(&message, sizeof message)};
    std::vector<at::Tensor> payload{bytes_at(const_cast<std::byte*>(data.data), data.bytes)};
    await([&] { return gloo_->send(header, to, header_tag(message.tag)); });
    if (data.bytes > 0)
      await([&] { return gloo_->send(payload, to, header_tag(message.tag) + 1); });
  }

  Message receive(Out data, int from, int tag, const Patience&) override {
    Message message;
    std::vector<at::Tensor> header{bytes_at(&message, sizeof message)};
    await([&] {
      return from < 0 ? gloo_->recvAnysource(header, header_tag(tag))
                      : gloo_->recv(header, from, header_tag(tag));
    });
    std::vector<std::byte> wrong(message.bytes == data.bytes ? 0 : message.bytes);
    void* place = wrong.empty() ? data.data : wrong.data();
    std::vector<at::Tensor> payload{bytes_at(place, message.bytes)};
    if (message.bytes > 0)
      await([&] { return gloo_->recv(payload, message.source, header_tag(tag) + 1); });
    if (message.bytes != data.bytes)
      throw Failure("rank " + std::to_string(message.source) + " of the group sent " +
                    std::to_string(message.bytes) + " bytes, rank " + std::to_string(rank_) +
                    " receives " + std::to_string(data.bytes) +
                    ": give both sides tensors of one size and dtype");
    return message;
  }

 private:
  static int header_tag(int tag) { return (tag & 0x3fffffff) * 2; }
  static size_t sum(const std::vector<int64_t>& sizes) {
    return size_t(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
  }

  template <class Start>
  static void await(Start start) {
    try {
      start()->wait();
    } catch (const c10::Error& error) {
      throw Failure(std::string("gloo: ") + error.what_without_backtrace());
    } catch (const std::exception& error) {
      throw Failure(std::string("gloo: ") + error.what());
    }
  }

  c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace

std::unique_ptr<collectives::Transport> over_gloo(c10::intrusive_ptr<c10d::Backend> gloo) {
  return std::make_unique<OverGloo>(std::move(gloo));
}

}  // namespace trn
