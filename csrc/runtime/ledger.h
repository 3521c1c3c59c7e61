// What ran on each logical core: launches by signature, their price, and the simulated clock.
//
// A signature is an operator with the dtypes, shapes, strides and attributes of one call. Numbers
// that are data, such as a learning rate, count by their type: the rows of a training loop must not
// grow with its steps. The first launch of a signature asks the pricer; later ones add to a count
// and to the clock.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trn {

// False in a build that measures what counting costs (cmake -DTRN_PRICING=OFF): nothing is counted.
#ifdef TRN_NO_PRICING
constexpr bool kPricing = false;
#else
constexpr bool kPricing = true;
#endif

// A 64-bit hash that is fed values one after another.
class SignatureHash {
 public:
  void add(uint64_t value) noexcept {
    if constexpr (!kPricing) return;
    state_ = (state_ ^ value) * 0x9E3779B97F4A7C15ull;
    state_ ^= state_ >> 29;
  }
  void add(const at::Tensor& tensor) noexcept;
  void add(const c10::IValue& value) noexcept;

  // Numbers that shape a program (alpha, beta, ord, an exponent, a momentum of 0): small whole and
  // half ones, infinite ones and NaN differ, all others are alike. Signatures stay few where a
  // number changes with every step.
  void add_number(double value) noexcept;
  void add_number(const c10::IValue& value) noexcept;  // and lists of them
  uint64_t value() const noexcept { return state_; }

 private:
  uint64_t state_ = 0xCBF29CE484222325ull;
};

// One call as text, without its tensors: for people, and as JSON for the pricer.
struct CallText {
  explicit CallText(const std::vector<c10::IValue>& values);
  std::string signature;  // "(Float[8, 8], Float[8, 8])"
  std::string json;  // [{"t": "Float", "s": [8, 8], "d": [8, 1]}, ...]; "c": 1 on a host tensor
};

// What one launch of a call costs.
struct Price {
  int64_t device_ns = 0;     // of the core
  int64_t row = -1;          // the pricer's number for its counters
  bool free = false;         // metadata only: nothing is launched
  bool blocks = false;       // the host waits for the result
  int64_t dispatch_ns = -1;  // of the host; -1: that of an eager operator
};

struct LaunchRow {
  std::string op;  // "aten::mm"
  std::string signature;
  int64_t launches = 0;
  Price price;  // zeros until a pricer is set
};

struct PricedCall {
  const char* op;
  const std::string& arguments;  // JSON
  const std::string& results;
  int policy;  // the matmul precision policy in force
};

// Called once for each new signature, after its first kernel, on the thread that launched it.
using Pricer = std::function<Price(const PricedCall& call)>;
void set_pricer(Pricer pricer);

// Simulated time of one core since the start or the last reset.
struct CoreTimes {
  int64_t dispatch_ns = 0;  // the host launched
  int64_t busy_ns = 0;      // programs ran on the core
  int64_t idle_ns = 0;      // the core waited for the host
};

// One launch on the simulated clock. The row stays where it is and keeps its price.
struct Launched {
  const LaunchRow* row = nullptr;
  c10::DeviceIndex device = 0;
  c10::StreamId stream = 0;
  int64_t host_ns = 0;  // the host begins to dispatch it
  int64_t dispatch_ns = 0;
  int64_t start_ns = 0;  // the core begins it
  int64_t idle_ns = 0;   // the core had waited for the host
};

// Told of every launch but the free ones, on the thread that launches; threads may overlap.
class LaunchListener {
 public:
  virtual void launched(const Launched& launch) noexcept = 0;

 protected:
  ~LaunchListener() = default;  // listeners outlive the process's threads
};
enum class Listener : size_t { kProfile, kKineto };
constexpr size_t kListeners = 2;
void set_listener(Listener slot, LaunchListener* listener) noexcept;  // null: nobody

class Ledger {
 public:
  static Ledger& of(c10::DeviceIndex device);

  // The row of a signature, or null when it is new: then `add` prices it and makes one.
  LaunchRow* find(const SignatureHash& signature) noexcept;
  LaunchRow* add(const SignatureHash& signature, const char* op, const CallText& arguments,
                 const CallText& results, int policy);
  // A row that comes with its price: of a compiled graph. The same key gives the same row.
  LaunchRow* add_priced(uint64_t key, LaunchRow row);
  // Counts one launch that succeeded and advances the core's clock.
  void launch(LaunchRow* row) noexcept;

  // While this thread compiles, what it launches is not the user's: it is not counted. Returns the
  // previous setting.
  static bool pause(bool paused) noexcept;

  std::vector<LaunchRow> rows() const;
  CoreTimes times() const;
  void reset();

  struct Core;

 private:
  explicit Ledger(c10::DeviceIndex device);
  Core& core_;
};

// Simulated nanoseconds. Host time passes by dispatches; a core works its streams in order behind
// it.
struct SimulatedClock {
  static int64_t stream_ns(c10::Stream stream) noexcept;  // when the stream's last work ends
  static void wait(c10::Stream stream, int64_t until_ns) noexcept;
  static void synchronize(c10::Stream stream) noexcept;
  static void synchronize(c10::DeviceIndex device) noexcept;
  static bool reached(c10::DeviceIndex device, int64_t ns) noexcept;  // by the host
  static int64_t host_ns(c10::DeviceIndex device) noexcept;
};

}  // namespace trn
