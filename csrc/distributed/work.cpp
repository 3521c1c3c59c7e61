// See work.h.
#include "work.h"

#include "hooks.h"
#include "param_comms.h"
#include "runtime/collective_clock.h"
#include "runtime/ledger.h"
#include "runtime/stream.h"

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/stack.h>
#include <ATen/record_function.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

namespace trn {
namespace {

constexpr auto kLook = std::chrono::milliseconds(100);

// Names that differ from those of the functions that users call.
std::string known_to_torch(const std::string& op) {
  if (op == "all_gather_coalesced") return "all_gather";
  if (op == "all_gather_into_tensor") return "_all_gather_base";
  if (op == "reduce_scatter_tensor") return "_reduce_scatter_base";
  if (op == "all_to_all_single") return "all_to_all";
  return op;
}

}  // namespace

const char* profiler_title(const char* op) {
  if (!at::hasCallbacks()) return nullptr;
  static auto* mutex = new std::mutex;
  static auto* titles = new std::map<std::string, std::string>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::string& title = (*titles)[op];
  if (title.empty()) title = collective_hooks().backend + ":" + known_to_torch(op);
  return title.c_str();
}

void Work::done(CollectivePtr collective, int source) {
  collective_ = std::move(collective);
  source_ = source;
  finish();
}

bool Work::isCompleted() {
  if (parts_.empty()) return c10d::Work::isCompleted();
  return std::all_of(parts_.begin(), parts_.end(), [](auto& part) { return part->isCompleted(); });
}

bool Work::isSuccess() const {
  if (parts_.empty()) return c10d::Work::isSuccess();
  return std::all_of(parts_.begin(), parts_.end(), [](auto& part) { return part->isSuccess(); });
}

std::exception_ptr Work::exception() const {
  for (const auto& part : parts_) {
    if (auto error = part->exception()) return error;
  }
  return parts_.empty() ? c10d::Work::exception() : nullptr;
}

void Work::await_values(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (const auto& part : parts_) part->await_values(timeout);
  if (!parts_.empty()) return;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!completed_) {
    cv_.wait_for(lock, kLook);
    if (completed_) break;
    if (timeout > kNoTimeout && std::chrono::steady_clock::now() >= deadline) {
      // What scripts written for NCCL look for.
      C10_THROW_ERROR(
          DistBackendError,
          c10::str("caught collective operation timeout: ", c10d::opTypeToString(opType_), " #",
                   sequence_, " has not ended within the ", timeout.count(), " ms of wait()"));
    }
    lock.unlock();
    if (auto& check = collective_hooks().check_interrupt) check();
    lock.lock();
  }
  if (exception_) std::rethrow_exception(exception_);
}

bool Work::wait(std::chrono::milliseconds timeout) {
  record_wait(rank_, sequence_, results_);
  block(timeout);
  return true;
}

void Work::block(std::chrono::milliseconds timeout) {
  collective_hooks().without_python([&] { await_values(timeout); });
  synchronize();
}

std::vector<CollectivePtr> Work::ends() {
  collective_hooks().without_python([&] { await_values(kNoTimeout); });
  return collectives();
}

std::vector<CollectivePtr> Work::collectives() const {
  std::vector<CollectivePtr> all;
  if (collective_) all.push_back(collective_);
  for (const auto& part : parts_) {
    const auto some = part->collectives();
    all.insert(all.end(), some.begin(), some.end());
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a->end_ns < b->end_ns; });
  return all;
}

void Work::synchronize() {
  if (!device_.is_privateuseone() || scheduled_) return;
  const c10::Stream stream = current_stream(device_.index());
  CollectiveClock::wait(stream, collectives());
  if (opType_ == c10d::OpType::BARRIER) SimulatedClock::synchronize(stream);
}

std::vector<at::Tensor> Work::result() {
  if (parts_.empty()) return results_;
  std::vector<at::Tensor> all;
  for (const auto& part : parts_) {
    const auto some = part->result();
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::vector<at::Tensor> Work::future_value() {
  const auto like_first = [&](const at::Tensor& one) {
    return one.sizes() == results_[0].sizes() && one.dtype() == results_[0].dtype();
  };
  const bool gathered = opType_ == c10d::OpType::ALLGATHER && !results_.empty();
  if (gathered && std::all_of(results_.begin(), results_.end(), like_first))
    return {at::stack(results_)};
  return result();
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFuture() {
  std::vector<c10::Device> devices;
  if (device_.is_privateuseone()) devices.push_back(device_);
  auto future = c10::make_intrusive<c10::ivalue::Future>(
      c10::ListType::create(c10::TensorType::get()), devices);
  try {
    collective_hooks().without_python([&] { await_values(kNoTimeout); });
  } catch (...) {
    future->setError(std::current_exception());
    return future;
  }
  if (!device_.is_privateuseone()) {
    future->markCompleted(c10::IValue(future_value()));
    return future;
  }
  // The future notes the time of the current stream: that of the collectives, set to this one's
  // end.
  const std::vector<at::Tensor> value = future_value();
  static auto* mutex = new std::mutex;
  std::lock_guard<std::mutex> lock(*mutex);
  const c10::Stream queue = collective_stream(device_.index());
  CollectiveClock::set(device_.index(), collectives());
  const c10::Stream previous = exchange_stream(queue);
  future->markCompleted(c10::IValue(value));
  exchange_stream(previous);
  return future;
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFutureResult() {
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get());
  bool failed = false;
  try {
    collective_hooks().without_python([&] { await_values(kNoTimeout); });
  } catch (...) {
    failed = true;
  }
  future->markCompleted(
      c10::IValue(int64_t(failed ? c10d::WorkResult::COMM_ERROR : c10d::WorkResult::SUCCESS)));
  return future;
}

float Work::getDuration() const {
  return collective_ ? float(double(collective_->end_ns - collective_->start_ns) / 1e6) : 0.0f;
}

}  // namespace trn
