// See convolution.h. Forward and to the image are one: rows of the product are channels of the
// result, columns its pixels, so that a result is written as it lies.
#include "convolution.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "planes.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

// Pixels of the result on a grid of their own, which the same taps add to.
struct Part {
  std::vector<int64_t> taps;     // of the filter
  std::vector<int64_t> offsets;  // from a pixel's element to the one that the tap multiplies
  RowsAndColumns size;
  int64_t first, row_stride, column_stride;  // of the result
};

// x [batch, groups * from, image] to y [batch, groups * to, result], with filters of which element
// (to, from, tap) is at to * to_stride + from * from_stride + tap.
struct Plan {
  int64_t batch, groups, from, to, taps;
  int64_t to_stride, from_stride;
  Grid grid;
  int64_t result;  // elements of a channel
  std::vector<Part> parts;

  int64_t steps() const { return round_up(ceil_div(from, 2), side_steps); }
  int64_t panels() const { return ceil_div(to, tile_side); }
  int64_t panel_words() const { return taps * steps() * tile_side; }
  // Of a pair of channels: with what the last tile reads after its end, an odd number of cache
  // lines, so that steps lie in different sets.
  int64_t plane_words() const {
    return (ceil_div(grid.elements() + grid.size[1] + tile_side, side_steps) | 1) * side_steps;
  }
  int64_t filter_elements() const { return to * from * taps; }
};

Plan plan_of_result(const Convolution& c) {
  Plan plan{c.batch,
            c.groups,
            c.in_channels,
            c.out_channels,
            c.taps(),
            c.in_channels * c.taps(),
            c.taps(),
            grid_of_input(c),
            c.out[0] * c.out[1],
            {}};
  Part all{{}, {}, c.out, 0, c.out[1], 1};
  for (int64_t row = 0; row < c.kernel[0]; ++row)
    for (int64_t column = 0; column < c.kernel[1]; ++column) {
      all.taps.push_back(row * c.kernel[1] + column);
      all.offsets.push_back(plan.grid.at(row * c.dilation[0], column * c.dilation[1]));
    }
  plan.parts.push_back(std::move(all));
  return plan;
}

// The rows, or columns, of the image from `phase` on, a stride apart: to which taps of the filter's
// rows they belong, and how far from each other they and the result's are.
struct Axis {
  std::vector<int64_t> taps, shifts;
  int64_t count;
};

Axis axis_of(const Convolution& c, size_t axis, int64_t phase) {
  Axis found{{}, {}, ceil_div(std::max<int64_t>(0, c.in[axis] - phase), c.stride[axis])};
  for (int64_t tap = 0; tap < c.kernel[axis]; ++tap) {
    const int64_t shift = phase + c.padding[axis] - tap * c.dilation[axis];
    if (shift % c.stride[axis] != 0) continue;
    found.taps.push_back(tap);
    found.shifts.push_back(shift / c.stride[axis]);
  }
  return found;
}

Plan plan_of_input(const Convolution& c) {
  Plan plan{c.batch,           c.groups, c.out_channels,           c.in_channels,
            c.taps(),          c.taps(), c.in_channels * c.taps(), {c.out, {}, {}, {}, {}},
            c.in[0] * c.in[1], {}};
  Grid& grid = plan.grid;
  std::array<std::vector<Axis>, 2> axes;
  for (size_t i = 0; i < 2; ++i) {
    for (int64_t phase = 0; phase < c.stride[i]; ++phase) axes[i].push_back(axis_of(c, i, phase));
    int64_t last = c.out[i];
    for (const Axis& axis : axes[i]) {
      last = std::max(last, axis.count);
      for (const int64_t shift : axis.shifts) {
        grid.before[i] = std::max(grid.before[i], -shift);
        last = std::max(last, shift + axis.count);
      }
    }
    grid.place(i, 1, grid.before[i] + last, {0});
  }
  grid.join();
  for (int64_t row = 0; row < c.stride[0]; ++row)
    for (int64_t column = 0; column < c.stride[1]; ++column) {
      const Axis &rows = axes[0][size_t(row)], &columns = axes[1][size_t(column)];
      Part part{{},
                {},
                {rows.count, columns.count},
                row * c.in[1] + column,
                c.stride[0] * c.in[1],
                c.stride[1]};
      for (size_t i = 0; i < rows.taps.size(); ++i)
        for (size_t j = 0; j < columns.taps.size(); ++j) {
          part.taps.push_back(rows.taps[i] * c.kernel[1] + columns.taps[j]);
          part.offsets.push_back(
              grid.at(grid.before[0] + rows.shifts[i], grid.before[1] + columns.shifts[j]));
        }
      plan.parts.push_back(std::move(part));
    }
  return plan;
}

// ---- packing ----

// `lines` lines of `count` values as pairs, 16 words a line.
void pack_tile(const uint16_t* x, int64_t line_stride, int64_t stride, int64_t lines, int64_t count,
               uint32_t* words) {
  for (int64_t line = 0; line < lines; ++line, x += line_stride, words += side_steps) {
    const uint16_t* from = x;
    for (int64_t i = 0; i < count / 2; ++i, from += 2 * stride)
      words[i] = from[0] | static_cast<uint32_t>(from[stride]) << 16;
    if (count % 2 == 1) words[count / 2] = from[0];
  }
}

// Panels of the filters of one group: [panel][tap, in the order of the parts][steps / 16][32][16].
// False where a value is not finite or a subnormal.
bool pack_filters(const Plan& plan, DType dtype, const void* filters, uint32_t* words) {
  const Kernels& kernel = kernels();
  Scratch<uint16_t> rounded(static_cast<size_t>(plan.filter_elements()));
  std::vector<int64_t> place(static_cast<size_t>(plan.taps));
  int64_t next = 0;
  for (const Part& part : plan.parts)
    for (const int64_t tap : part.taps)
      place[static_cast<size_t>(tap)] = next++ * plan.steps() * tile_side;
  std::atomic<bool> plain = true;
  constexpr int64_t piece = 8192;
  parallel_for(0, ceil_div(plan.filter_elements(), piece), 1, [&](int64_t lo, int64_t hi) {
    const int64_t first = lo * piece, count = std::min(hi * piece, plan.filter_elements()) - first;
    kernel.round_row(rounding_of(dtype), dtype, element_at(filters, dtype, first), count,
                     Output::bfloat16, rounded.get() + first);
    if (!is_plain(rounded.get() + first, count)) plain = false;
  });
  if (!plain) return false;
  parallel_for(0, plan.panels(), 1, [&](int64_t lo, int64_t hi) {
    const int64_t lines = std::min(hi * tile_side, plan.to);
    if (lines < hi * tile_side || plan.steps() * 2 > plan.from)
      std::fill(words + lo * plan.panel_words(), words + hi * plan.panel_words(), 0u);
    for (int64_t panel = lo; panel < hi; ++panel)
      for (int64_t first = 0; first < plan.from; first += tile_side)
        for (int64_t tap = 0; tap < plan.taps; ++tap) {
          const uint16_t* tile =
              rounded.get() + panel * tile_side * plan.to_stride + first * plan.from_stride + tap;
          uint32_t* to = words + panel * plan.panel_words() + place[static_cast<size_t>(tap)] +
                         first / 2 * tile_side;
          const int64_t height = std::min(tile_side, plan.to - panel * tile_side);
          pack_tile(tile, plan.to_stride, plan.from_stride, height,
                    std::min(tile_side, plan.from - first), to);
        }
  });
  return true;
}

// 32 channels of one image from `channel` on, as planes of pairs. False where one may be subnormal.
bool pack_planes(const Plan& plan, DType dtype, const char* image, int64_t channel,
                 uint32_t* words) {
  const Grid& grid = plan.grid;
  const int64_t plane = plan.plane_words(), columns = grid.image[1];
  uint32_t* to = words + channel / 2 * plane;
  std::fill(to, to + side_steps * plane, 0u);
  Scratch<uint32_t> line(grid.strided() ? static_cast<size_t>(side_steps * columns) : 0);
  const int64_t count = std::min(tile_side, plan.from - channel);
  bool subnormal = false;
  for (int64_t row = 0; row < grid.image[0]; ++row) {
    const int64_t at = grid.row(grid.before[0] + row);
    if (at < 0) continue;
    const void* rows[tile_side];
    for (int64_t i = 0; i < count; ++i)
      rows[i] = element_at(image, dtype, ((channel + i) * grid.image[0] + row) * columns);
    const ColumnDestination d = grid.strided()
                                    ? ColumnDestination{line.get(), columns, 0, 0}
                                    : ColumnDestination{to + at + grid.before[1], plane, 0, 0};
    subnormal |= kernels().round_columns(rounding_of(dtype), dtype, rows, count, columns,
                                         Output::bf16_pairs, d);
    if (!grid.strided()) continue;
    for (int64_t pair = 0; pair < ceil_div(count, 2); ++pair)
      for (int64_t j = 0; j < columns; ++j)
        if (const int64_t column = grid.column(grid.before[1] + j); column >= 0)
          to[pair * plane + at + column] = line.get()[pair * columns + j];
  }
  return !subnormal;
}

// ---- the product ----

// Rows [lo, hi) of the part's pixels of one image and group, for one panel of channels.
void multiply_strip(const Plan& plan, const Part& part, int64_t panel, int64_t lo, int64_t hi,
                    const uint32_t* a, const uint32_t* planes, const float* bias, float* y,
                    float* sums) {
  const Kernels& kernel = kernels();
  const int64_t width = plan.grid.size[1];
  const int64_t pixels = (hi - lo - 1) * width + part.size[1], stride = round_up(pixels, tile_side);
  const int64_t channel = panel * tile_side, rows = std::min(tile_side, plan.to - channel);
  const auto taps = static_cast<int64_t>(part.taps.size());
  for (int64_t j = 0; j < pixels; j += tile_side)
    kernel.gemm_taps(rows, taps, part.offsets.data(), plan.steps(), a, planes + lo * width + j,
                     plan.plane_words(), sums + j, stride, false);
  for (int64_t i = 0; i < rows; ++i) {
    const float added = bias != nullptr ? bias[channel + i] : 0.0f;
    for (int64_t row = lo; row < hi; ++row) {
      const float* from = sums + i * stride + (row - lo) * width;
      float* to = y + (channel + i) * plan.result + part.first + row * part.row_stride;
      const int64_t step = part.column_stride;
      if (step == 1)
        for (int64_t j = 0; j < part.size[1]; ++j) to[j] = from[j] + added;
      else
        for (int64_t j = 0; j < part.size[1]; ++j) to[j * step] = from[j] + added;
    }
  }
}

// One image and group. `loop` is over its independent parts.
template <class Loop>
bool convolve_image(const Plan& plan, DType dtype, const char* image, const uint32_t* filters,
                    const float* bias, float* y, const Loop& loop) {
  Scratch<uint32_t> planes(static_cast<size_t>(plan.steps() * plan.plane_words()));
  std::atomic<bool> plain = true;
  loop(plan.steps() / side_steps, [&](int64_t lo, int64_t hi) {
    for (int64_t block = lo; block < hi; ++block)
      if (!pack_planes(plan, dtype, image, block * tile_side, planes.get())) plain = false;
  });
  if (!plain) return false;
  constexpr int64_t most_pixels = 1152;
  int64_t words = 0;  // of the parts before, in each panel
  for (const Part& part : plan.parts) {
    const uint32_t* a = filters + words;
    words += static_cast<int64_t>(part.taps.size()) * plan.steps() * tile_side;
    if (part.size[0] == 0 || part.size[1] == 0) continue;
    const int64_t width = plan.grid.size[1];
    const int64_t strips = ceil_div(part.size[0], std::max<int64_t>(1, most_pixels / width));
    const int64_t height = ceil_div(part.size[0], strips);
    loop(strips * plan.panels(), [&](int64_t lo, int64_t hi) {
      const PairProducts scope(Packing(kernels(), true, 1));
      Scratch<float> sums(static_cast<size_t>(tile_side * round_up(height * width, tile_side)));
      for (int64_t item = lo; item < hi; ++item) {
        const int64_t strip = item / plan.panels(), panel = item % plan.panels();
        multiply_strip(plan, part, panel, strip * height,
                       std::min(strip * height + height, part.size[0]),
                       a + panel * plan.panel_words(), planes.get(), bias, y, sums.get());
      }
    });
  }
  return true;
}

bool run(const Plan& plan, DType dtype, const void* x, const void* w, const float* bias, float* y) {
  const IeeeScope scope;
  const int64_t filter_words = plan.panels() * plan.panel_words();
  Scratch<uint32_t> filters(static_cast<size_t>(plan.groups * filter_words));
  for (int64_t g = 0; g < plan.groups; ++g)
    if (!pack_filters(plan, dtype, element_at(w, dtype, g * plan.filter_elements()),
                      filters.get() + g * filter_words))
      return false;
  const int64_t images = plan.batch * plan.groups, threads = num_threads();
  const int64_t in = plan.from * plan.grid.image[0] * plan.grid.image[1];
  std::atomic<bool> plain = true;
  const auto one = [&](int64_t i, const auto& loop) {
    const int64_t g = i % plan.groups;
    if (!convolve_image(plan, dtype, element_at(x, dtype, i * in), filters.get() + g * filter_words,
                        bias != nullptr ? bias + g * plan.to : nullptr,
                        y + i * plan.to * plan.result, loop))
      plain = false;
  };
  const auto alone = [](int64_t count, const auto& body) { body(int64_t{0}, count); };
  const auto shared = [](int64_t count, const auto& body) { parallel_for(0, count, 1, body); };
  const int64_t whole = images / threads * threads;
  if (whole > 0)
    parallel_for(0, whole, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi && plain; ++i) one(i, alone);
    });
  for (int64_t i = whole; i < images && plain; ++i) one(i, shared);
  return plain;
}

}  // namespace

bool convolves_in_tiles() { return kernels().gemm_taps != nullptr; }

bool convolve(const Convolution& c, DType dtype, const void* x, const void* w, const float* bias,
              float* y) {
  return run(plan_of_result(c), dtype, x, w, bias, y);
}

bool convolve_to_input(const Convolution& c, DType dtype, const void* grad, const void* w,
                       float* grad_x) {
  return run(plan_of_input(c), dtype, grad, w, nullptr, grad_x);
}

}  // namespace trn::numerics
