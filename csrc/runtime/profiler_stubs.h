// Events of torch's profilers on the simulated clock.
#pragma once

namespace trn {

// ProfilerActivity.CUDA is this device's time: for a build of torch without CUDA.
void answer_to_cuda_profiler();

}  // namespace trn
