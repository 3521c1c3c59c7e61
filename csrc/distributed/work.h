// One collective or message under way, or several of them together.
#pragma once

#include "runtime/collective_clock.h"

#include <c10/core/Device.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <vector>

namespace trn {

// What a profiler of torch calls the operation `op` of our backends, as those of torch do theirs;
// null while nothing profiles. Stays valid.
const char* profiler_title(const char* op);

class Work final : public c10d::Work {
 public:
  // A profiler of torch shows it as `title`, which outlives it.
  Work(int rank, c10d::OpType op, uint64_t sequence, c10::Device device,
       std::vector<at::Tensor> results, const char* title = nullptr,
       const std::vector<at::Tensor>& inputs = {})
      : c10d::Work(rank, op, title, inputs),
        sequence_(sequence),
        device_(device),
        results_(std::move(results)) {}
  // Ends when all of `parts` have ended.
  Work(int rank, c10::Device device, std::vector<c10::intrusive_ptr<Work>> parts)
      : c10d::Work(rank, c10d::OpType::COALESCED), device_(device), parts_(std::move(parts)) {}

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  // Blocks the host until the values are there, then the current stream in simulated time.
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  // The same, which no profiler of torch is told.
  void block(std::chrono::milliseconds timeout = kNoTimeout);
  void synchronize() override;
  void blockCurrentStream() override { synchronize(); }
  std::vector<at::Tensor> result() override;
  // The future is complete when it is given: what waits for it need no other thread.
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  float getDuration() const override;  // simulated milliseconds
  uint64_t getSequencenumber() const override { return sequence_; }
  int sourceRank() const override { return source_; }

  // By who runs it, once.
  void done(CollectivePtr collective, int source = -1);
  void failed(std::exception_ptr error) { finish(std::move(error)); }

  std::vector<CollectivePtr> collectives() const;  // with those of parts, by their end
  // A compiled graph issued it, and its schedule says when its core waits.
  void leave_to_schedule() { scheduled_ = true; }
  std::vector<CollectivePtr> ends();  // waits for the values
  c10::Device device() const { return device_; }

 private:
  // NCCL's: of an all_gather, one tensor with a row for each rank.
  std::vector<at::Tensor> future_value();
  void await_values(std::chrono::milliseconds timeout);

  const uint64_t sequence_ = 0;
  const c10::Device device_;
  std::vector<at::Tensor> results_;
  std::vector<c10::intrusive_ptr<Work>> parts_;
  CollectivePtr collective_;
  int source_ = -1;
  bool scheduled_ = false;
};

}  // namespace trn
