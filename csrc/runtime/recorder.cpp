// One recording for the process, behind a short lock; scopes are a stack of each thread.
#include "recorder.h"

#include "hbm.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/node.h>

#include <atomic>
#include <mutex>

namespace trn::recorder {
namespace {

using torch::autograd::Node;

struct Scope {
  int32_t id;
  Phase phase;
  const Node* inside;  // the backward node that runs it again, as checkpointing does
};

struct Shared {
  std::mutex mutex;
  Recording recording;
  size_t limit = 0;
  std::function<int32_t()> site_finder;
  std::atomic<bool> active{false}, sites{false};
  std::atomic<int64_t> session{0};  // scopes of an earlier one do not count
};

Shared& shared() {
  static auto* all = new Shared;  // outlives the process's threads
  return *all;
}

struct Here {
  int64_t session = -1;
  std::vector<Scope> scopes;
  uint64_t seen = 0;  // sequence numbers given out before the last launch
};
thread_local Here here;

std::vector<Scope>& scopes() {
  const int64_t session = shared().session.load(std::memory_order_relaxed);
  if (here.session != session) here = {session, {}, at::sequence_number::peek()};
  return here.scopes;
}

Origin origin() {
  const auto& stack = scopes();
  const auto running = torch::autograd::get_current_node();
  Origin out;
  out.thread = at::RecordFunction::currentThreadId();
  out.next_node = at::sequence_number::peek();
  if (!stack.empty() && stack.back().inside == running.get()) {
    out.scope = stack.back().id;
    out.phase = stack.back().phase;
  } else if (running) {
    out.phase = Phase::kBackward;
    if (const auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(running.get())) {
      out.leaf = leaf->variable.unsafeGetTensorImpl();
    } else {
      out.node = int64_t(running->sequence_nr());
      out.thread = running->thread_id();
    }
  } else if (out.next_node != here.seen) {
    out.phase = Phase::kForward;  // autograd has made a node for it
  }
  return out;
}

void log_scope() {
  Shared& all = shared();
  const auto& stack = scopes();
  const ScopeRecord record{at::RecordFunction::currentThreadId(), at::sequence_number::peek(),
                           stack.empty() ? -1 : stack.back().id};
  std::lock_guard<std::mutex> lock(all.mutex);
  if (all.recording.left_out > 0) return;
  all.recording.scopes.push_back(record);
}

class Launches final : public LaunchListener {
 public:
  void launched(const Launched& launch) noexcept override {
    Shared& all = shared();
    Origin from = origin();
    here.seen = from.next_node;
    if (all.sites.load(std::memory_order_relaxed)) from.site = all.site_finder();
    std::lock_guard<std::mutex> lock(all.mutex);
    if (all.recording.launches.size() < all.limit)
      all.recording.launches.push_back({launch, from});
    else
      ++all.recording.left_out;
  }
};

void on_block(int device, const void* block, int64_t bytes) noexcept {
  Shared& all = shared();
  const Phase phase = bytes > 0 ? origin().phase : Phase::kOther;
  std::lock_guard<std::mutex> lock(all.mutex);
  if (all.recording.left_out > 0) return;
  all.recording.blocks.push_back(
      {block, bytes, int64_t(all.recording.launches.size()), int8_t(device), int8_t(phase)});
}

}  // namespace

void start(bool sites, size_t limit) {
  Shared& all = shared();
  static auto* launches = new Launches;
  {
    std::lock_guard<std::mutex> lock(all.mutex);
    all.recording = {};
    all.limit = limit;
  }
  ++all.session;
  scopes();  // from now on this thread's nodes are its own
  all.sites = sites && all.site_finder;
  all.active = true;
  set_listener(Listener::kProfile, launches);
  set_hbm_listener(&on_block);
}

Recording stop() {
  Shared& all = shared();
  set_listener(Listener::kProfile, nullptr);
  set_hbm_listener(nullptr);
  all.active = false;
  std::lock_guard<std::mutex> lock(all.mutex);
  return std::exchange(all.recording, {});
}

void enter(int32_t scope, Phase phase) {
  if (!shared().active) return;
  scopes().push_back({scope, phase, torch::autograd::get_current_node().get()});
  log_scope();
}

void leave() {
  if (!shared().active || scopes().empty()) return;
  scopes().pop_back();
  log_scope();
}

void mark(const void* block, int8_t kind) {
  const int device = hbm_device_of(block);
  Shared& all = shared();
  if (device < 0 || !all.active) return;
  const auto size = int64_t(hbm(device).block_bytes(block));
  std::lock_guard<std::mutex> lock(all.mutex);
  if (all.recording.left_out > 0) return;
  all.recording.blocks.push_back(
      {block, 0, int64_t(all.recording.launches.size()), int8_t(device), kind, size});
}

void set_site_finder(std::function<int32_t()> finder) { shared().site_finder = std::move(finder); }

}  // namespace trn::recorder
