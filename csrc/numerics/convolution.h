// Convolutions of bfloat16 values in tiles, where the instruction set multiplies them: the image is
// packed once, as planes of pairs of channels with a border of zeros, and each tap of the filter
// multiplies it where it lies. Sums are float32 in the bound of gemm.h.
#pragma once

#include <array>
#include <cstdint>

#include "formats.h"

namespace trn::numerics {

using RowsAndColumns = std::array<int64_t, 2>;

// Of contiguous images [batch, groups * in_channels, in], filters [groups * out_channels,
// in_channels, kernel] and results [batch, groups * out_channels, out]. Channels are those of one
// group.
struct Convolution {
  int64_t batch, groups, in_channels, out_channels;
  RowsAndColumns in, out, kernel, stride, padding, dilation;

  int64_t taps() const { return kernel[0] * kernel[1]; }
};

// Whether the instruction set multiplies bfloat16.
bool convolves_in_tiles();

// Operands are float32, rounded to bfloat16 on the way, or bfloat16; results are float32. All
// return false, and what was written is of no use, where a value may be a subnormal of float32, or
// where one that is not finite would meet the border's zeros.
//
// y = x * w + bias, which may be null.
bool convolve(const Convolution& c, DType dtype, const void* x, const void* w, const float* bias,
              float* y);
// From the gradient of the result: that of the image.
bool convolve_to_input(const Convolution& c, DType dtype, const void* grad, const void* w,
                       float* grad_x);
// That of the filters.
bool convolve_to_filters(const Convolution& c, DType dtype, const void* grad, const void* x,
                         float* grad_w);

}  // namespace trn::numerics
