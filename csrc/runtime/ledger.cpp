// One ledger and one clock for each logical core, both behind a short lock.
#include "ledger.h"

#include "device.h"
#include "stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <sstream>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

std::mutex pricer_mutex;
Pricer pricer;

void describe(std::ostream& out, const c10::IValue& value) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined()) {
      out << "None";
      return;
    }
    out << c10::toString(tensor.scalar_type());
    if (tensor.layout() == at::kStrided && !tensor.is_nested()) out << tensor.sizes();
  } else if (value.isList()) {
    out << "[";
    const char* separator = "";
    for (const c10::IValue& element : value.toListRef()) {
      out << std::exchange(separator, ", ");
      describe(out, element);
    }
    out << "]";
  } else if (value.isGenerator() || value.isStorage()) {
    out << value.tagKind();
  } else {
    out << value;
  }
}

std::string describe(const std::vector<c10::IValue>& arguments) {
  std::ostringstream out;
  out << "(";
  const char* separator = "";
  for (const c10::IValue& argument : arguments) {
    out << std::exchange(separator, ", ");
    describe(out, argument);
  }
  out << ")";
  return out.str();
}

}  // namespace

void SignatureHash::add(const at::Tensor& tensor) noexcept {
  if (!tensor.defined()) return add(uint64_t{0xff});
  auto* impl = tensor.unsafeGetTensorImpl();
  add(uint64_t(impl->dtype().toScalarType()));
  if (tensor.is_nested() || tensor.layout() != at::kStrided)
    return add(uint64_t(tensor.layout()) << 8);
  add(uint64_t(impl->is_contiguous()));
  for (int64_t size : impl->sizes()) add(uint64_t(size));
  if (!impl->is_contiguous()) {
    for (int64_t stride : impl->strides()) add(uint64_t(stride));
  }
}

void SignatureHash::add(const c10::IValue& value) noexcept {
  if (value.isTensor()) return add(value.toTensor());
  if (value.isInt()) return add(uint64_t(value.toInt()));
  if (value.isBool()) return add(uint64_t(value.toBool()) + 2);
  if (value.isNone()) return add(uint64_t{1} << 63);
  if (value.isDouble()) {
    const double number = value.toDouble();
    uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    return add(bits);
  }
  if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) add(element);
    return add(uint64_t(value.toListRef().size()) << 32);
  }
  if (value.isString()) return add(std::hash<std::string>{}(value.toStringRef()));
  add(uint64_t{7});
}

struct Ledger::Core {
  c10::DeviceIndex device = 0;
  std::mutex mutex;
  std::unordered_map<uint64_t, LaunchRow> rows;  // rows never move
  int64_t host_ns = 0;                           // simulated time of the threads that launch
  std::array<int64_t, kMaxStreams> ready_ns{};

  int64_t& ready(c10::StreamId stream) { return ready_ns[size_t(stream)]; }

  static Core& of(c10::DeviceIndex device) {
    static auto* cores = new std::array<Core, kMaxDevices>;  // outlives static destruction
    Core& core = (*cores)[size_t(device)];
    core.device = device;
    return core;
  }
};

Ledger::Ledger(c10::DeviceIndex device) : core_(Core::of(device)) {}

Ledger& Ledger::of(c10::DeviceIndex device) {
  static auto* ledgers = [] {
    auto* all = new std::vector<Ledger>;
    for (int i = 0; i < kMaxDevices; ++i) all->push_back(Ledger(c10::DeviceIndex(i)));
    return all;
  }();
  return (*ledgers)[size_t(device)];
}

LaunchRow* Ledger::find(uint64_t key) noexcept {
  std::lock_guard<std::mutex> lock(core_.mutex);
  const auto found = core_.rows.find(key);
  return found == core_.rows.end() ? nullptr : &found->second;
}

LaunchRow* Ledger::add(const char* op, uint64_t key, const std::vector<c10::IValue>& arguments) {
  LaunchRow row{op, trn::describe(arguments)};
  Pricer price;
  {
    std::lock_guard<std::mutex> lock(pricer_mutex);
    price = pricer;
  }
  if (price) row.device_ns = price(row.op, arguments);
  std::lock_guard<std::mutex> lock(core_.mutex);
  return &core_.rows.try_emplace(key, std::move(row)).first->second;
}

void Ledger::launch(LaunchRow* row) noexcept {
  std::lock_guard<std::mutex> lock(core_.mutex);
  ++row->launches;
  core_.host_ns += config().dispatch_ns;
  int64_t& ready = core_.ready(current_stream(core_.device).id());
  ready = std::max(ready, core_.host_ns) + row->device_ns;
}

std::vector<LaunchRow> Ledger::rows() const {
  std::lock_guard<std::mutex> lock(core_.mutex);
  std::vector<LaunchRow> out;
  for (const auto& [key, row] : core_.rows) {
    if (row.launches > 0) out.push_back(row);
  }
  return out;
}

void Ledger::reset() {
  std::lock_guard<std::mutex> lock(core_.mutex);
  for (auto& [key, row] : core_.rows) row.launches = 0;
}

void set_pricer(Pricer price) {
  std::lock_guard<std::mutex> lock(pricer_mutex);
  pricer = std::move(price);
}

int64_t SimulatedClock::stream_ns(c10::Stream stream) noexcept {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  return std::max(core.ready(stream.id()), core.host_ns);
}

void SimulatedClock::wait(c10::Stream stream, int64_t until_ns) noexcept {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  core.ready(stream.id()) = std::max(core.ready(stream.id()), until_ns);
}

void SimulatedClock::synchronize(c10::Stream stream) noexcept {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  core.host_ns = std::max(core.host_ns, core.ready(stream.id()));
}

void SimulatedClock::synchronize(c10::DeviceIndex device) noexcept {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  for (int64_t ready : core.ready_ns) core.host_ns = std::max(core.host_ns, ready);
}

bool SimulatedClock::reached(c10::DeviceIndex device, int64_t ns) noexcept {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.host_ns >= ns;
}

}  // namespace trn
