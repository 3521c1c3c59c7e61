// Point to point. Each peer, direction and tag has a lane of its own, so that no send waits for a
// receive that was posted after it.
#include "backend.h"
#include "memory.h"
#include "runtime/collective_clock.h"
#include "runtime/stream.h"

#include <algorithm>
#include <cstring>

namespace trn {
namespace {

// "send #3 of ...", as collectives have it.
std::string numbered(std::string what, uint64_t sequence) {
  return what.insert(what.find(' '), " #" + std::to_string(sequence));
}

}  // namespace

Backend::WorkPtr Backend::message(c10d::OpType op, Tensors& tensors, int peer, int tag) {
  check_usable();
  const bool sending = op == c10d::OpType::SEND;
  const char* name = sending ? "send" : "recv";
  TORCH_CHECK(tensors.size() == 1, name, ": one tensor, got ", tensors.size());
  TORCH_CHECK_VALUE(op == c10d::OpType::RECVANYSOURCE || (peer >= 0 && peer < size_), name,
                    ": rank ", peer, " is none of the ", size_, " ranks of the group");
  TORCH_CHECK_VALUE(peer != rank_ || coalesced_, name,
                    ": a rank exchanges messages with itself in batch_isend_irecv alone");
  const at::Tensor& tensor = tensors[0];
  const at::Tensor memory =
      borrow_contiguous(tensor, sending ? Access::kRead : Access::kWrite, name);
  const c10::Device device = tensor.device();
  const CollectivePrice cost =
      peer < 0 ? CollectivePrice{} : price_of_message(int64_t(tensor.nbytes()), peer);
  const char* title = profiler_title(peer < 0 ? "recvAnySource" : name);
  auto work = c10::make_intrusive<Work>(rank_, op, ++messages_, device, tensors, title, tensors);
  if (estimated_ns_) {
    *estimated_ns_ += cost.ns;
    work->done(nullptr);
    return keep(std::move(work));
  }
  Call call{op, name, tensor.scalar_type()};
  (sending ? call.inputs : call.results) = tensors;
  record_param_comms(call, messages_, options_->group_name, getGroupDesc(), ranks_, rank_,
                     std::max(peer, 0));
  const int64_t arrival_ns = CollectiveClock::issue(current_stream(device.index()));
  const std::string what = std::string(name) + " of " +
                           std::string(c10::getDtypeNames(tensor.scalar_type()).first) + "[" +
                           std::to_string(tensor.numel()) + "] " + (sending ? "to" : "from") + " " +
                           (peer < 0 ? "any rank" : "rank " + std::to_string(global(peer))) +
                           ", tag " + std::to_string(tag);
  if (peer == rank_) {
    own_.push_back({sending, tag, memory, arrival_ns, cost, work, what});
    return keep(std::move(work));
  }
  Lane* lane = nullptr;
  {
    std::lock_guard<std::mutex> lock(lanes_mutex_);
    // A mailbox keeps its sender's order; a gloo send waits for the receiver of its tag.
    const bool one_lane = sending && transport_->name() == std::string("shm");
    lane = &(sending ? senders_ : receivers_)[{peer, one_lane ? 0 : tag}];
  }
  lane->post([this, op, peer, tag, memory, arrival_ns, cost, work, what] {
    try {
      deliver(op, peer, tag, memory, arrival_ns, cost, *work, what);
    } catch (...) {
      CollectiveClock::ended(work->device().index(), arrival_ns, nullptr);
      work->failed(std::current_exception());
    }
  });
  return keep(std::move(work));
}

// Sends of a batch and the receives that they are for, both of this rank, in the order of the
// calls.
void Backend::deliver_own() {
  auto all = std::move(own_);
  own_.clear();
  const auto complete = [](const OwnMessage& message, std::shared_ptr<Collective> ended) {
    ended->arrival_ns = message.arrival_ns;
    ended->row = message.cost.row;
    ended->what = message.what;
    ended->sequence = message.work->getSequencenumber();
    CollectiveClock::ended(message.work->device().index(), message.arrival_ns, ended);
    message.work->done(std::move(ended));
  };
  for (OwnMessage& to : all) {
    if (!to.sending) continue;
    const auto from = std::find_if(all.begin(), all.end(), [&](const OwnMessage& m) {
      return !m.sending && m.memory.defined() && m.tag == to.tag;
    });
    TORCH_CHECK_VALUE(from != all.end(), to.what, ": the batch has no receive from this rank");
    TORCH_CHECK_VALUE(from->memory.scalar_type() == to.memory.scalar_type() &&
                          from->memory.nbytes() == to.memory.nbytes(),
                      to.what, " for ", from->what,
                      ": give both sides tensors of one size and dtype");
    if (to.memory.nbytes() > 0)
      std::memcpy(from->memory.mutable_data_ptr(), to.memory.const_data_ptr(), to.memory.nbytes());
    Collective ended;
    ended.arrivals_ns = {to.arrival_ns, from->arrival_ns};
    ended.start_ns = std::max(to.arrival_ns, from->arrival_ns);
    ended.end_ns = ended.start_ns + to.cost.ns;
    ended.group = group();
    complete(to, std::make_shared<Collective>(ended));
    complete(*from, std::make_shared<Collective>(ended));
    from->memory.reset();
  }
  for (const OwnMessage& m : all)
    TORCH_CHECK_VALUE(m.sending || !m.memory.defined(), m.what,
                      ": the batch has no send to this rank");
}

CollectivePrice Backend::price_of_message(int64_t bytes, int peer) {
  const auto [first, last] = std::minmax({global(rank_), global(peer)});
  return price("send", bytes, {first, last});
}

void Backend::deliver(c10d::OpType op, int peer, int tag, const at::Tensor& memory,
                      int64_t arrival_ns, CollectivePrice cost, Work& work,
                      const std::string& what) {
  const auto wait = patience(c10d::kUnsetTimeout, false);
  auto ended = std::make_shared<Collective>();
  ended->arrival_ns = ended->start_ns = arrival_ns;
  ended->arrivals_ns = {arrival_ns};
  int source = peer;
  try {
    if (broken_) throw collectives::Failure("an earlier operation of the group failed");
    if (op == c10d::OpType::SEND) {
      collectives::Message message;
      message.tag = tag;
      message.dtype = int32_t(memory.scalar_type());
      message.arrival_ns = arrival_ns;
      transport_->send(in(memory), peer, message, wait);
    } else {
      const auto got = transport_->receive(out(memory), peer, tag, wait);
      if (got.dtype != int32_t(memory.scalar_type()))
        throw collectives::Failure(
            "rank " + std::to_string(global(got.source)) + " sent " +
            std::string(c10::getDtypeNames(c10::ScalarType(got.dtype)).first) +
            ": give both sides tensors of one size and dtype");
      ended->start_ns = std::max(arrival_ns, got.arrival_ns);
      ended->arrivals_ns.push_back(got.arrival_ns);
      source = got.source;
      if (peer < 0) cost = price_of_message(int64_t(memory.nbytes()), source);
    }
  } catch (const collectives::Failure& failure) {
    fail(numbered(what, work.getSequencenumber()) + " in group " + group(), failure.what());
  }
  ended->end_ns = ended->start_ns + cost.ns;
  ended->row = cost.row;
  ended->group = group();
  ended->sequence = work.getSequencenumber();
  ended->what = what;
  CollectiveClock::ended(work.device().index(), arrival_ns, ended);
  work.done(std::move(ended), source);
}

Backend::WorkPtr Backend::send(Tensors& tensors, int to, int tag) {
  return message(c10d::OpType::SEND, tensors, to, tag);
}

Backend::WorkPtr Backend::recv(Tensors& tensors, int from, int tag) {
  return message(c10d::OpType::RECV, tensors, from, tag);
}

Backend::WorkPtr Backend::recvAnysource(Tensors& tensors, int tag) {
  return message(c10d::OpType::RECVANYSOURCE, tensors, -1, tag);
}

}  // namespace trn
