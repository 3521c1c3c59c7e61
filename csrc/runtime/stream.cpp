// Stream 0 is the default stream; new streams are taken in turn from a fixed pool, as on CUDA. The
// last is that of the collectives.
#include "stream.h"

#include "collective_clock.h"
#include "device_name.h"

#include <array>
#include <atomic>

namespace trn {
namespace {
thread_local std::array<c10::StreamId, kMaxDevices> current_ids{};
std::array<std::atomic<uint32_t>, kMaxDevices> handed_out{};
}  // namespace

c10::Stream default_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::DEFAULT, c10::Device(kTrn, device));
}

c10::Stream current_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kTrn, device), current_ids[size_t(device)]);
}

void check_stream(c10::Stream stream) {
  check_index(stream.device_index());
  TORCH_CHECK_VALUE(stream.id() >= 0 && stream.id() < kMaxStreams, device_name(), " has no stream ",
                    stream.id(), ": the numbers of a device's streams are 0 to ", kMaxStreams - 1,
                    ". Take the stream_id of a stream that exists.");
}

c10::Stream exchange_stream(c10::Stream stream) {
  check_stream(stream);
  const c10::Stream previous = current_stream(stream.device_index());
  current_ids[size_t(stream.device_index())] = stream.id();
  return previous;
}

c10::Stream new_stream(c10::DeviceIndex device) {
  check_index(device);
  const uint32_t turn = handed_out[size_t(device)].fetch_add(1);
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kTrn, device),
                     1 + c10::StreamId(turn % (kMaxStreams - 2)));
}

c10::Stream collective_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kTrn, device), kMaxStreams - 1);
}

}  // namespace trn
