// A device thread drops the last graph when it takes up the next: an empty backward on each device,
// from a thread without Python state, leaves each holding a graph that needs no interpreter.
#include "backward_threads.h"

#include "device.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <thread>

namespace trn {

void rest_backward_threads() {
  std::thread([] {
    for (int device = 0; device < device_count(); ++device) {
      try {
        const auto where = at::device(c10::Device(kTrn, c10::DeviceIndex(device)));
        const at::Tensor x = at::empty({0}, where.requires_grad(true));
        x.neg().backward(at::empty({0}, where));
      } catch (const std::exception&) {
        return;  // the process is ending: nobody to tell
      }
    }
  }).join();
}

}  // namespace trn
