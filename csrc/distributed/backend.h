// The c10d backend `trn`: what torch.distributed asks of a device's process group.
//
// A collective is three steps: what it is (a Call) is compared among all ranks, bytes move through
// the group's transport, and the end is computed from the latest arrival and a modelled duration.
// To add one, describe it as a Call in collectives.cpp.
#pragma once

#include "collectives/transport.h"
#include "hooks.h"
#include "lane.h"
#include "work.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <map>
#include <optional>
#include <tuple>

namespace trn {

struct BackendOptions final : c10d::Backend::Options {
  explicit BackendOptions(std::chrono::milliseconds timeout = kBackendDefaultTimeout)
      : Options("trn", timeout) {}
  bool is_high_priority_stream = false;
  c10::intrusive_ptr<c10d::Backend> split_from;
  int64_t split_color = 0;
};

// What the members of a group must agree on before bytes move.
struct Call {
  c10d::OpType op;
  const char* name;
  c10::ScalarType dtype = c10::ScalarType::Byte;
  int64_t elements = 0;
  uint64_t shapes = 0;  // a hash, of coalesced tensors
  int root = -1;
  c10d::ReduceOp reduce{};
  bool reduces = false;
  double factor = 0;                          // of PREMUL_SUM
  std::vector<uint64_t> sends{}, receives{};  // bytes to and from each rank
  std::chrono::milliseconds timeout = c10d::kUnsetTimeout;
  bool async = true;
  std::optional<collectives::In> along{};  // with which its gather() or all_reduce() begins
  int64_t priced_bytes = 0;                // the full buffer
  std::optional<c10::Device> device{};
  std::vector<at::Tensor> results{}, inputs{};
};

// What a call finds when all ranks have come.
struct Meeting {
  collectives::Transport& transport;
  const collectives::Patience& wait;
  size_t largest;               // of the pieces between any two ranks
  std::vector<double> factors;  // one for each rank, of PREMUL_SUM
};
using Move = std::function<void(const Meeting&)>;

class Backend final : public c10d::Backend {
 public:
  using Tensors = std::vector<at::Tensor>;
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  Backend(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
          c10::intrusive_ptr<BackendOptions> options);
  ~Backend() override;

  const std::string getBackendName() const override { return "trn"; }
  bool supportsSplitting() const override { return true; }
  bool supportsCoalescing() const override { return true; }
  bool supportsTimeEstimation() const override { return true; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  c10::intrusive_ptr<BackendOptions> options() const { return options_; }
  std::string transport() const { return transport_->name(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& opts) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override;
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& opts) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& opts) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override;
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const c10d::GatherOptions& opts) override;
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                  const c10d::ScatterOptions& opts) override;
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& opts) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& opts) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& opts) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits,
                        const c10d::AllToAllOptions& opts) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override;
  WorkPtr barrier(const c10d::BarrierOptions& opts) override;
  WorkPtr send(Tensors& tensors, int to, int tag) override;
  WorkPtr recv(Tensors& tensors, int from, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;

  void startCoalescing() override;
  WorkPtr endCoalescing() override;
  // Between the two, collectives are priced and not run. The second returns microseconds.
  void start_time_estimate();
  double end_time_estimate();

  c10::intrusive_ptr<c10d::Backend> split(const c10::intrusive_ptr<c10d::Store>& store,
                                          const std::vector<int>& ranks,
                                          const c10::intrusive_ptr<Options>& opts) override;
  void setTimeout(std::chrono::milliseconds timeout) override { options_->timeout = timeout; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }
  void enableCollectivesTiming() override {}  // every collective has its time
  c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;

  // Tells the other ranks of every group why this process ends.
  static void end_all(const std::string& reason);

 private:
  struct Header;
  WorkPtr start(Call call, Move move);
  void run(const Call& call, uint64_t sequence, int64_t arrival_ns, CollectivePrice price,
           const Move& move, Work& work, bool here);
  std::vector<std::byte> header_of(const Call& call, uint64_t sequence, int64_t arrival_ns) const;
  std::vector<const Header*> compare(const Call& call, const std::vector<std::byte>& all,
                                     size_t each, Meeting& meeting) const;
  [[noreturn]] void fail(const std::string& what, const std::string& why, bool known = false);
  collectives::Patience patience(std::chrono::milliseconds timeout, bool here) const;
  WorkPtr message(c10d::OpType op, Tensors& tensors, int peer, int tag);
  void deliver_own();
  void deliver(c10d::OpType op, int peer, int tag, const at::Tensor& memory, int64_t arrival_ns,
               CollectivePrice cost, Work& work, const std::string& what);
  std::string group() const;  // its name, for people
  std::string title(const char* op, uint64_t sequence) const;
  int64_t global(int rank) const { return ranks_[size_t(rank)]; }
  CollectivePrice price(std::string_view op, int64_t bytes, const std::vector<int64_t>& ranks,
                        bool in_graph = false);
  CollectivePrice price_of_message(int64_t bytes, int peer);
  void check_usable() const;
  bool busy();
  c10::intrusive_ptr<Work> keep(c10::intrusive_ptr<Work> work);

  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<BackendOptions> options_;
  std::unique_ptr<collectives::Transport> transport_;
  const int owner_;                   // pid
  const std::vector<int64_t> ranks_;  // of the world
  std::atomic<uint64_t> sequence_{0};
  std::atomic<uint64_t> messages_{0};
  uint64_t splits_ = 0;
  int64_t queue_ns_ = 0;  // the end of the last collective; only who runs one touches it
  std::atomic<bool> ended_{false}, broken_{false};
  std::optional<std::vector<c10::intrusive_ptr<Work>>> coalesced_;
  // Of this batch, between this rank and itself.
  struct OwnMessage {
    bool sending;
    int tag;
    at::Tensor memory;
    int64_t arrival_ns;
    CollectivePrice cost;
    c10::intrusive_ptr<Work> work;
    std::string what;
  };
  std::vector<OwnMessage> own_;
  std::optional<int64_t> estimated_ns_;
  std::mutex prices_mutex_;
  std::map<std::tuple<std::string_view, int64_t, int64_t, int64_t, bool>, CollectivePrice> prices_;
  std::mutex lanes_mutex_;
  Lane lane_;
  std::map<std::pair<int, int>, Lane> senders_, receivers_;  // by peer (-1: any) and tag
};

}  // namespace trn
