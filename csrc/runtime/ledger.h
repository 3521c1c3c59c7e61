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

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trn {

// A 64-bit hash that is fed values one after another.
class SignatureHash {
 public:
  void add(uint64_t value) noexcept {
    state_ = (state_ ^ value) * 0x9E3779B97F4A7C15ull;
    state_ ^= state_ >> 29;
  }
  void add(const at::Tensor& tensor) noexcept;
  void add(const c10::IValue& value) noexcept;
  uint64_t value() const noexcept { return state_; }

 private:
  uint64_t state_ = 0xCBF29CE484222325ull;
};

struct LaunchRow {
  std::string op;         // "aten::mm"
  std::string signature;  // "(Float[8, 8], Float[8, 8])"
  int64_t launches = 0;
  int64_t device_ns = 0;  // of one launch; 0 until a pricer is set
};

// Returns the nanoseconds that one launch of the call takes on the core.
using Pricer =
    std::function<int64_t(const std::string& op, const std::vector<c10::IValue>& arguments)>;
void set_pricer(Pricer pricer);

class Ledger {
 public:
  static Ledger& of(c10::DeviceIndex device);

  // The row of a signature, made and priced by `describe` (which gives the arguments) when it is
  // new.
  template <class Describe>
  LaunchRow* row(const char* op, const SignatureHash& signature, Describe&& describe) {
    LaunchRow* found = find(signature.value());
    return found != nullptr ? found : add(op, signature.value(), describe());
  }
  // Counts one launch that succeeded and advances the core's clock.
  void launch(LaunchRow* row) noexcept;

  std::vector<LaunchRow> rows() const;
  void reset();

  struct Core;

 private:
  explicit Ledger(c10::DeviceIndex device);
  LaunchRow* find(uint64_t key) noexcept;
  LaunchRow* add(const char* op, uint64_t key, const std::vector<c10::IValue>& arguments);
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
};

}  // namespace trn
