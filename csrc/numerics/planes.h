// Internal: images packed for convolution by tiles.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "convolution.h"
#include "kernels.h"
#include "packing.h"

namespace trn::numerics {

constexpr int64_t tile_side = 32;  // rows and columns that a call of gemm_taps multiplies
constexpr int64_t side_steps = 16;

constexpr int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

// Where the elements of an image lie that has zeros around it: rows and columns of the same
// remainder by the stride are neighbours, so that a step of the stride is one element. What no tap
// reads has no place.
struct Grid {
  RowsAndColumns image, before;
  RowsAndColumns size;                          // of the elements with one remainder
  RowsAndColumns parts;                         // remainders that a tap reads
  std::array<std::vector<int64_t>, 2> offsets;  // of the rows and columns; -1 where it has none

  // An axis has `count` elements of each remainder, and taps at `taps`.
  void place(size_t axis, int64_t stride, int64_t count, const std::vector<int64_t>& taps) {
    std::vector<int64_t> part(static_cast<size_t>(stride), -1);
    for (const int64_t tap : taps) {
      int64_t& found = part[static_cast<size_t>(tap % stride)];
      if (found < 0) found = parts[axis]++;
    }
    size[axis] = count;
    for (int64_t i = 0; i < stride * count; ++i) {
      const int64_t found = part[static_cast<size_t>(i % stride)];
      offsets[axis].push_back(found < 0 ? -1 : found * count + i / stride);
    }
  }
  // After both axes: [row remainder][column remainder][row][column].
  void join() {
    for (int64_t& row : offsets[0])
      if (row >= 0) row = row / size[0] * parts[1] * size[0] * size[1] + row % size[0] * size[1];
    for (int64_t& column : offsets[1])
      if (column >= 0) column = column / size[1] * size[0] * size[1] + column % size[1];
  }

  int64_t elements() const { return parts[0] * parts[1] * size[0] * size[1]; }
  bool strided() const { return offsets[1].size() > static_cast<size_t>(size[1]); }
  int64_t row(int64_t i) const { return offsets[0][static_cast<size_t>(i)]; }
  int64_t column(int64_t i) const { return offsets[1][static_cast<size_t>(i)]; }
  int64_t at(int64_t i, int64_t j) const { return row(i) + column(j); }
};

// What a convolution reads: the image with its padding.
inline Grid grid_of_input(const Convolution& c) {
  Grid grid{c.in, c.padding, {}, {}, {}};
  for (size_t i = 0; i < 2; ++i) {
    std::vector<int64_t> taps;
    for (int64_t tap = 0; tap < c.kernel[i]; ++tap) taps.push_back(tap * c.dilation[i]);
    const int64_t read = (c.out[i] - 1) * c.stride[i] + taps.back() + 1;
    grid.place(i, c.stride[i], ceil_div(std::max(read, c.padding[i] + c.in[i]), c.stride[i]), taps);
  }
  grid.join();
  return grid;
}

// One line of rounded elements: whether all are finite, and none a subnormal.
inline bool is_plain(const uint16_t* x, int64_t count) {
  unsigned found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const unsigned bits = x[i] & 0x7fffu;
    found |= unsigned{bits >= 0x7f80u} | unsigned{bits - 1u < 0x7fu};
  }
  return found == 0;
}

inline Elementwise rounding_of(DType dtype) {
  return dtype == DType::float32 ? Elementwise::bfloat16 : Elementwise::none;
}

inline const char* element_at(const void* x, DType dtype, int64_t index) {
  return static_cast<const char*>(x) + index * static_cast<int64_t>(size_of(dtype));
}

}  // namespace trn::numerics
