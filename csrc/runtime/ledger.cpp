// One ledger and one clock for each logical core, both behind a short lock.
#include "ledger.h"

#include "device.h"
#include "exposure.h"
#include "listing.h"
#include "stream.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

std::mutex pricer_mutex;
Pricer pricer;
thread_local bool paused = false;
thread_local bool listing_launches = false;
thread_local std::vector<LaunchRow*> listed;

std::array<std::atomic<LaunchListener*>, kListeners> listeners{};

void tell(const Launched& launch) noexcept {
  for (const auto& slot : listeners) {
    if (auto* listener = slot.load(std::memory_order_acquire)) listener->launched(launch);
  }
}

}  // namespace

struct Ledger::Core {
  c10::DeviceIndex device = 0;
  std::mutex mutex;
  std::unordered_map<uint64_t, LaunchRow> rows;  // rows never move
  int64_t host_ns = 0;                           // simulated time of the threads that launch
  CoreTimes times;
  Exposure exposure;
  std::array<int64_t, kMaxStreams> ready_ns{};
  std::array<Waits, kMaxStreams> waits{};  // for collectives, since the stream's last launch

  int64_t& ready(c10::StreamId stream) { return ready_ns[size_t(stream)]; }
  Waits& waits_of(c10::StreamId stream) { return waits[size_t(stream)]; }
  Waits open() const {  // of all streams but that of futures, where nothing is launched
    Waits all;
    for (size_t i = 0; i + 1 < waits.size(); ++i)
      all.insert(all.end(), waits[i].begin(), waits[i].end());
    return all;
  }

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

LaunchRow* Ledger::find(const SignatureHash& signature) noexcept {
  if constexpr (!kPricing) {
    static LaunchRow none;
    return &none;
  }
  std::lock_guard<std::mutex> lock(core_.mutex);
  const auto found = core_.rows.find(signature.value());
  return found == core_.rows.end() ? nullptr : &found->second;
}

LaunchRow* Ledger::add(const SignatureHash& signature, const char* op, const CallText& arguments,
                       const CallText& results, int policy) {
  LaunchRow row{op, arguments.signature, 0, {}};
  Pricer price;
  {
    std::lock_guard<std::mutex> lock(pricer_mutex);
    price = pricer;
  }
  if (price)
    row.price =
        price({op, arguments.json, results.json, policy});  // may wait for the GIL: no lock held
  std::lock_guard<std::mutex> lock(core_.mutex);
  return &core_.rows.try_emplace(signature.value(), std::move(row)).first->second;
}

LaunchRow* Ledger::add_priced(uint64_t key, LaunchRow row) {
  std::lock_guard<std::mutex> lock(core_.mutex);
  return &core_.rows.try_emplace(key, std::move(row)).first->second;
}

bool Ledger::pause(bool pause) noexcept { return std::exchange(paused, pause); }

std::vector<LaunchRow> list_launches(bool listing) {
  std::vector<LaunchRow> out;
  for (const LaunchRow* row : std::exchange(listed, {})) out.push_back(*row);
  listing_launches = listing;
  return out;
}

std::vector<LaunchRow*> launches_of(const std::function<void()>& run) {
  struct Listing {
    bool was_paused = std::exchange(paused, false);
    bool was_listing = std::exchange(listing_launches, true);
    std::vector<LaunchRow*> before = std::exchange(listed, {});
    ~Listing() {
      paused = was_paused;
      listing_launches = was_listing;
      listed = std::move(before);
    }
  } listing;
  run();
  return std::move(listed);
}

void Ledger::launch(LaunchRow* row) noexcept {
  if constexpr (!kPricing) return;
  if (paused) return;
  if (listing_launches) {
    listed.push_back(row);
    return;
  }
  const int64_t dispatch_ns =
      row->price.dispatch_ns >= 0 ? row->price.dispatch_ns : config().dispatch_ns;
  Launched launch{row, core_.device, current_stream(core_.device).id(), 0, dispatch_ns, 0, 0};
  {
    std::lock_guard<std::mutex> lock(core_.mutex);
    ++row->launches;
    if (row->price.free) return;
    launch.host_ns = core_.host_ns;
    core_.host_ns += launch.dispatch_ns;
    int64_t& ready = core_.ready(launch.stream);
    launch.idle_ns = std::max(core_.host_ns - ready, int64_t{0});
    launch.start_ns = std::max(ready, core_.host_ns);
    ready = launch.start_ns + row->price.device_ns;
    if (Waits& waits = core_.waits_of(launch.stream); !waits.empty()) {
      Exposure::hold(waits, core_.host_ns);
      waits.clear();
    }
    core_.exposure.busy(launch.idle_ns > 0 ? launch.host_ns : launch.start_ns, ready,
                        launch.host_ns);
    core_.times.dispatch_ns += launch.dispatch_ns;
    core_.times.busy_ns += row->price.device_ns;
    core_.times.idle_ns += launch.idle_ns;
    if (row->price.blocks) core_.host_ns = ready;
  }
  tell(launch);
}

void set_listener(Listener slot, LaunchListener* listener) noexcept {
  listeners[size_t(slot)].store(listener, std::memory_order_release);
}

CoreTimes Ledger::times() const {
  std::lock_guard<std::mutex> lock(core_.mutex);
  return core_.times;
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
  core_.times = {};
  core_.exposure.reset();
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
  Exposure::hold(core.waits_of(stream.id()), core.host_ns);
  core.host_ns = std::max(core.host_ns, core.ready(stream.id()));
}

void SimulatedClock::synchronize(c10::DeviceIndex device) noexcept {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  Exposure::hold(core.open(), core.host_ns);
  for (size_t i = 0; i + 1 < core.ready_ns.size(); ++i)  // without that of the collectives
    core.host_ns = std::max(core.host_ns, core.ready_ns[i]);
}

bool SimulatedClock::reached(c10::DeviceIndex device, int64_t ns) noexcept {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.host_ns >= ns;
}

int64_t SimulatedClock::host_ns(c10::DeviceIndex device) noexcept {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.host_ns;
}

int64_t CollectiveClock::issue(c10::Stream stream) noexcept {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  core.host_ns += config().dispatch_ns;
  core.times.dispatch_ns += config().dispatch_ns;
  const int64_t arrival_ns = std::max(core.ready(stream.id()), core.host_ns);
  core.exposure.issued(arrival_ns);
  return arrival_ns;
}

int64_t CollectiveClock::reach(c10::Stream stream) noexcept {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  const int64_t arrival_ns = std::max(core.ready(stream.id()), core.host_ns);
  core.exposure.issued(arrival_ns);
  return arrival_ns;
}

void CollectiveClock::ended(c10::DeviceIndex device, int64_t arrival_ns,
                            const CollectivePtr& collective) {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  core.exposure.over(arrival_ns);
  if (collective) core.exposure.ended(collective, core.host_ns);
}

void CollectiveClock::wait(c10::Stream stream, const std::vector<CollectivePtr>& collectives) {
  Waits waits;
  for (const auto& collective : collectives) waits.push_back({collective, collective->start_ns});
  wait(stream, waits);
}

void CollectiveClock::wait(c10::Stream stream, const Waits& waits) {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  for (const Wait& wait : waits) {
    int64_t& ready = core.ready(stream.id());
    if (wait.collective->end_ns <= ready) continue;
    core.waits_of(stream.id()).push_back({wait.collective, std::max(wait.from_ns, ready)});
    ready = wait.collective->end_ns;
  }
}

void CollectiveClock::set(c10::DeviceIndex device, const std::vector<CollectivePtr>& collectives) {
  const c10::Stream stream = collective_stream(device);
  {
    Ledger::Core& core = Ledger::Core::of(device);
    std::lock_guard<std::mutex> lock(core.mutex);
    core.waits_of(stream.id()).clear();
    core.ready(stream.id()) = 0;
  }
  wait(stream, collectives);
}

Waits CollectiveClock::waits(c10::Stream stream) {
  Ledger::Core& core = Ledger::Core::of(stream.device_index());
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.waits_of(stream.id());
}

std::map<int64_t, CollectiveTimes> CollectiveClock::rows(c10::DeviceIndex device) {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.exposure.rows(core.open(), core.host_ns);
}

void CollectiveClock::start_log(c10::DeviceIndex device, size_t limit) {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  core.exposure.start_log(limit);
}

std::vector<CollectivePtr> CollectiveClock::stop_log(c10::DeviceIndex device) {
  Ledger::Core& core = Ledger::Core::of(device);
  std::lock_guard<std::mutex> lock(core.mutex);
  return core.exposure.stop_log(core.open(), core.host_ns);
}

}  // namespace trn
