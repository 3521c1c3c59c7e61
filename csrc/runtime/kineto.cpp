// The device's timeline for torch.profiler: a plug-in of Kineto. Checked on torch 2.13.0.
//
// The operators of a Kineto trace stand at the host's real time. A kernel is laid behind the
// operator that launched it and behind the kernel before it on its stream, and takes its simulated
// duration. Nothing of this reaches the counters.
#include "ledger.h"

#include <c10/util/ApproximateClock.h>
#include <torch/csrc/profiler/standalone/privateuse1_profiler.h>

#include <libkineto.h>
#include <output_base.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

namespace trn {
namespace {

using libkineto::ActivityType;

struct Kernel {
  Launched launch;
  int64_t wall_ns;  // the host's real time at the launch
  int64_t correlation;
  int32_t thread;
};

thread_local std::vector<uint64_t> correlations;  // operators that run on this thread

// Collects between start and stop; one for the process, as Kineto runs one trace at a time.
class Collector final : public LaunchListener {
 public:
  static Collector& instance() {
    static auto* collector = new Collector;  // outlives the process's threads
    return *collector;
  }
  void launched(const Launched& launch) noexcept override {
    const Kernel kernel{launch, c10::getTime(),
                        correlations.empty() ? 0 : int64_t(correlations.back()),
                        libkineto::systemThreadId()};
    std::lock_guard<std::mutex> lock(mutex_);
    kernels_.push_back(kernel);
  }
  std::vector<Kernel> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(kernels_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Kernel> kernels_;
};

std::string kernel_name(const std::string& op) {
  constexpr std::string_view aten = "aten::";
  return "trn::" + (op.rfind(aten, 0) == 0 ? op.substr(aten.size()) : op);
}

class Session final : public libkineto::IActivityProfilerSession {
 public:
  void start() override {
    Collector::instance().take();
    set_listener(Listener::kKineto, &Collector::instance());
    status_ = libkineto::TraceStatus::RECORDING;
  }
  void stop() override {
    set_listener(Listener::kKineto, nullptr);
    build(Collector::instance().take());
    status_ = libkineto::TraceStatus::READY;
  }
  std::vector<std::string> errors() override { return {}; }

  void processTrace(libkineto::ActivityLogger&) override {}  // Kineto calls the other one
  void processTrace(libkineto::ActivityLogger& logger,
                    libkineto::getLinkedActivityCallback operator_of, int64_t, int64_t) override {
    for (const auto& activity : trace_->activities) {
      if (activity->type() == ActivityType::CONCURRENT_KERNEL)
        activity->linked = operator_of(activity->id);
      logger.handleGenericActivity(*activity);
    }
  }
  // Kineto refers to the activities for as long as the trace lives.
  std::unique_ptr<libkineto::CpuTraceBuffer> getTraceBuffer() override { return std::move(trace_); }

  std::unique_ptr<libkineto::DeviceInfo> getDeviceInfo() override { return nullptr; }

  std::vector<libkineto::ResourceInfo> getResourceInfos() override {
    std::vector<libkineto::ResourceInfo> out;
    for (const auto& [row, end] : ready_) {
      const auto& [device, stream] = row;
      out.push_back(
          {stream, stream, device,
           "trn:" + std::to_string(device) + " stream " + std::to_string(stream) + " (simulated)"});
    }
    return out;
  }

  void pushCorrelationId(uint64_t id) override { correlations.push_back(id); }
  void popCorrelationId() override {
    if (!correlations.empty()) correlations.pop_back();
  }

 private:
  void build(const std::vector<Kernel>& kernels) {
    trace_ = std::make_unique<libkineto::CpuTraceBuffer>();
    trace_->span = libkineto::TraceSpan(0, 0, "trn");
    trace_->gpuOpCount = int(kernels.size());
    for (const Kernel& k : kernels) {
      int64_t& end = ready_[{k.launch.device, k.launch.stream}];
      const int64_t start = std::max(end, k.wall_ns);
      end = start + k.launch.row->price.device_ns;
      add(k, start, end);
    }
  }

  // The host's call, a moment in its thread, with an arrow to the kernel.
  void add(const Kernel& k, int64_t start, int64_t end) {
    auto& call = activity(k, ActivityType::PRIVATEUSE1_RUNTIME, "trnLaunch");
    call.startTime = call.endTime = k.wall_ns;
    call.device = libkineto::processId();
    call.resource = k.thread;
    // Of no operator: with its id, the kernel would count twice.
    call.id = std::numeric_limits<int32_t>::max() - int32_t(call.flow.id);
    call.flow.start = 1;
    auto& kernel = activity(k, ActivityType::CONCURRENT_KERNEL, kernel_name(k.launch.row->op));
    kernel.startTime = start;
    kernel.endTime = end;
    kernel.id = int32_t(k.correlation);
    kernel.device = k.launch.device;
    kernel.resource = int32_t(k.launch.stream);
    kernel.flow.start = 0;
    kernel.addMetadata("simulated device time (ns)", k.launch.row->price.device_ns);
    kernel.addMetadata("simulated start (ns)", k.launch.start_ns);
    kernel.addMetadataQuoted("signature", k.launch.row->signature);
  }

  libkineto::GenericTraceActivity& activity(const Kernel& k, ActivityType type,
                                            const std::string& name) {
    trace_->emplace_activity(trace_->span, type, name);
    auto& made = libkineto::CpuTraceBuffer::toRef(trace_->activities.back());
    made.threadId = k.thread;
    made.flow.id = uint32_t((trace_->activities.size() + 1) / 2);
    made.flow.type = libkineto::kLinkAsyncCpuGpu;
    return made;
  }

  std::unique_ptr<libkineto::CpuTraceBuffer> trace_;
  std::map<std::pair<int, int64_t>, int64_t> ready_;  // end of the last kernel by device, stream
};

class Profiler final : public libkineto::IActivityProfiler {
 public:
  const std::string& name() const override { return name_; }
  const std::set<ActivityType>& availableActivities() const override { return activities_; }
  std::unique_ptr<libkineto::IActivityProfilerSession> configure(
      const std::set<ActivityType>&, const libkineto::Config&) override {
    return std::make_unique<Session>();
  }
  std::unique_ptr<libkineto::IActivityProfilerSession> configure(
      int64_t, int64_t, const std::set<ActivityType>& types,
      const libkineto::Config& config) override {
    return configure(types, config);
  }

 private:
  const std::string name_ = "trn";
  const std::set<ActivityType> activities_{ActivityType::CONCURRENT_KERNEL,
                                           ActivityType::PRIVATEUSE1_RUNTIME};
};

REGISTER_PRIVATEUSE1_PROFILER(Profiler);

}  // namespace
}  // namespace trn
