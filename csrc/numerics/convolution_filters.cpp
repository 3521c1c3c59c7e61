// The filters' gradient by tiles: for each tap a product over the pixels of a few images, whose
// rows are channels of the result and columns channels of the image.
#include <atomic>
#include <vector>

#include "convolution.h"
#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "planes.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

constexpr int64_t block = 16;  // channels that are transposed at a time

// Pixels of the result lie as those of the image that the first tap reads, with zeros between.
struct Plan {
  const Convolution& c;
  Grid grid;

  int64_t in() const { return c.in[0] * c.in[1]; }
  int64_t out() const { return c.out[0] * c.out[1]; }
  int64_t pixels() const { return round_up((c.out[0] - 1) * grid.size[1] + c.out[1], tile_side); }
  int64_t panels() const { return ceil_div(c.out_channels, tile_side); }
  int64_t columns() const { return round_up(c.in_channels, tile_side); }
  // With what the last tile reads after the end.
  int64_t positions() const { return round_up(grid.elements() + 2 * tile_side, 64); }
  int64_t image_words() const { return positions() * columns(); }
  int64_t grad_words() const { return pixels() / 2 * tile_side; }  // of an image, in one panel
};

// Channels of an image, rounded, one after the other: `height` rows of `width`, `pixels` apart in
// the tensor.
struct Channels {
  const void* data;
  DType dtype;
  int64_t rows, columns;

  // One of them to `to`, where row r is at `place(r)` and its elements `step` apart; false where it
  // is not plain.
  template <class Place>
  bool round(int64_t channel, uint16_t* plane, const Place& place) const {
    const int64_t count = rows * columns;
    kernels().round_row(rounding_of(dtype), dtype, element_at(data, dtype, channel * count), count,
                        Output::bfloat16, plane);
    for (int64_t row = 0; row < rows; ++row) place(row, plane + row * columns);
    return is_plain(plane, count);
  }
};

// 16 channels of an image: word (position, channel) is the element there and the next one.
bool pack_image(const Plan& plan, const Channels& image, int64_t first, uint32_t* words) {
  const Grid& grid = plan.grid;
  const int64_t positions = plan.positions(), line = positions + 2;
  Scratch<uint16_t> lines(static_cast<size_t>(block * line)), plane(static_cast<size_t>(plan.in()));
  std::fill_n(lines.get(), block * line, uint16_t{0});
  bool plain = true;
  for (int64_t i = 0; i < std::min(block, plan.c.in_channels - first); ++i) {
    uint16_t* to = lines.get() + i * line;
    plain &= image.round(first + i, plane.get(), [&](int64_t row, const uint16_t* from) {
      const int64_t at = grid.row(grid.before[0] + row);
      if (at < 0) return;
      if (!grid.strided())
        std::copy_n(from, image.columns, to + at + grid.before[1]);
      else
        for (int64_t j = 0; j < image.columns; ++j)
          if (const int64_t column = grid.column(grid.before[1] + j); column >= 0)
            to[at + column] = from[j];
    });
  }
  constexpr int64_t piece = 64;
  for (int64_t at = 0; at < positions; at += piece) {
    uint32_t pairs[block * piece];
    for (int64_t i = 0; i < block; ++i) {
      const uint16_t* from = lines.get() + i * line + at;
      for (int64_t j = 0; j < piece; ++j)
        pairs[i * piece + j] = from[j] | static_cast<uint32_t>(from[j + 1]) << 16;
    }
    kernels().transpose(pairs, piece, block, piece, words + at * plan.columns() + first,
                        plan.columns());
  }
  return plain;
}

// A panel of channels of one image's gradient: [pixels / 32][32][16] words.
bool pack_grad(const Plan& plan, const Channels& grad, int64_t first, uint32_t* words) {
  const int64_t pixels = plan.pixels(), width = plan.grid.size[1];
  Scratch<uint16_t> line(static_cast<size_t>(pixels)), plane(static_cast<size_t>(plan.out()));
  auto* to = reinterpret_cast<uint16_t*>(words);
  bool plain = true;
  for (int64_t i = 0; i < tile_side; ++i, to += tile_side) {
    std::fill_n(line.get(), pixels, uint16_t{0});
    if (first + i < plan.c.out_channels)
      plain &= grad.round(first + i, plane.get(), [&](int64_t row, const uint16_t* from) {
        std::copy_n(from, grad.columns, line.get() + row * width);
      });
    for (int64_t j = 0; j < pixels; j += tile_side)
      std::memcpy(to + j * tile_side, line.get() + j, tile_side * sizeof(uint16_t));
  }
  return plain;
}

// Images that are multiplied at a time: with what is packed of them, a good part of a second-level
// cache.
int64_t images_at_once(const Plan& plan) {
  constexpr int64_t words = 1 << 18;
  return std::clamp<int64_t>(words / plan.image_words(), 1, plan.c.batch);
}

// sums [tap][panel][32][columns] gain what images [first, last) of the group add.
bool add_images(const Plan& plan, DType dtype, const void* grad, const void* x, int64_t group,
                int64_t first, int64_t last, const std::vector<int64_t>& taps, uint32_t* of_x,
                uint32_t* of_grad, float* sums) {
  const Convolution& c = plan.c;
  const int64_t images = last - first, blocks = plan.columns() / block, panels = plan.panels();
  std::atomic<bool> plain = true;
  parallel_for(0, images * (blocks + panels), 1, [&](int64_t lo, int64_t hi) {
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t image = item / (blocks + panels), part = item % (blocks + panels);
      const int64_t at = (first + image) * c.groups + group;
      const bool done =
          part < blocks
              ? pack_image(
                    plan,
                    {element_at(x, dtype, at * c.in_channels * plan.in()), dtype, c.in[0], c.in[1]},
                    part * block, of_x + image * plan.image_words())
              : pack_grad(plan,
                          {element_at(grad, dtype, at * c.out_channels * plan.out()), dtype,
                           c.out[0], c.out[1]},
                          (part - blocks) * tile_side,
                          of_grad + ((part - blocks) * images + image) * plan.grad_words());
      if (!done) plain = false;
    }
  });
  if (!plain) return false;
  const int64_t strips = plan.columns() / tile_side;
  std::vector<int64_t> offsets(static_cast<size_t>(images));
  for (int64_t i = 0; i < images; ++i) offsets[static_cast<size_t>(i)] = i * plan.image_words();
  parallel_for(0, c.taps() * panels * strips, 1, [&](int64_t lo, int64_t hi) {
    const PairProducts scope(Packing(kernels(), true, 1));
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t strip = item % strips, panel = item / strips % panels;
      const int64_t tap = item / strips / panels;
      kernels().gemm_taps(
          std::min(tile_side, c.out_channels - panel * tile_side), images, offsets.data(),
          plan.pixels() / 2, of_grad + panel * images * plan.grad_words(),
          of_x + taps[static_cast<size_t>(tap)] * plan.columns() + strip * tile_side,
          2 * plan.columns(),
          sums + (tap * panels + panel) * tile_side * plan.columns() + strip * tile_side,
          plan.columns(), first > 0);
    }
  });
  return true;
}

}  // namespace

bool convolve_to_filters(const Convolution& c, DType dtype, const void* grad, const void* x,
                         float* grad_w) {
  const IeeeScope scope;
  const Plan plan{c, grid_of_input(c)};
  const int64_t most = images_at_once(plan), panels = plan.panels(), columns = plan.columns();
  Scratch<uint32_t> of_x(static_cast<size_t>(most * plan.image_words()));
  Scratch<uint32_t> of_grad(static_cast<size_t>(most * panels * plan.grad_words()));
  Scratch<float> sums(static_cast<size_t>(c.taps() * panels * tile_side * columns));
  std::vector<int64_t> taps;
  for (int64_t row = 0; row < c.kernel[0]; ++row)
    for (int64_t column = 0; column < c.kernel[1]; ++column)
      taps.push_back(plan.grid.at(row * c.dilation[0], column * c.dilation[1]));
  for (int64_t group = 0; group < c.groups; ++group) {
    for (int64_t first = 0; first < c.batch; first += most)
      if (!add_images(plan, dtype, grad, x, group, first, std::min(first + most, c.batch), taps,
                      of_x.get(), of_grad.get(), sums.get()))
        return false;
    float* to = grad_w + group * c.out_channels * c.in_channels * c.taps();
    for (int64_t i = 0; i < c.out_channels; ++i)
      for (int64_t j = 0; j < c.in_channels; ++j)
        for (int64_t tap = 0; tap < c.taps(); ++tap)
          *to++ = sums.get()[(tap * panels * tile_side + i) * columns + j];
  }
  return true;
}

}  // namespace trn::numerics
