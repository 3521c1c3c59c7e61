// See wider.h. These run above autograd: their gradients are computed in the wider format too.
#include "formats_set.h"
#include "runtime/ledger.h"
#include "typed.h"
#include "wider.h"

#include <ATen/core/grad_mode.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/conv1d_ops.h>
#include <ATen/ops/conv2d_ops.h>
#include <ATen/ops/conv3d_ops.h>
#include <ATen/ops/conv_transpose1d_ops.h>
#include <ATen/ops/conv_transpose2d_ops.h>
#include <ATen/ops/conv_transpose3d_ops.h>
#include <ATen/ops/fft_fft2_ops.h>
#include <ATen/ops/fft_fft_ops.h>
#include <ATen/ops/fft_fftn_ops.h>
#include <ATen/ops/fft_hfft2_ops.h>
#include <ATen/ops/fft_hfft_ops.h>
#include <ATen/ops/fft_hfftn_ops.h>
#include <ATen/ops/fft_ifft2_ops.h>
#include <ATen/ops/fft_ifft_ops.h>
#include <ATen/ops/fft_ifftn_ops.h>
#include <ATen/ops/fft_ihfft2_ops.h>
#include <ATen/ops/fft_ihfft_ops.h>
#include <ATen/ops/fft_ihfftn_ops.h>
#include <ATen/ops/fft_irfft2_ops.h>
#include <ATen/ops/fft_irfft_ops.h>
#include <ATen/ops/fft_irfftn_ops.h>
#include <ATen/ops/fft_rfft2_ops.h>
#include <ATen/ops/fft_rfft_ops.h>
#include <ATen/ops/fft_rfftn_ops.h>
#include <ATen/ops/nanmean_ops.h>

namespace trn {
namespace {

// clang-format off
#define TRN_FFT_OPS(_) \
  _(fft_fft)           \
  _(fft_fft2)          \
  _(fft_fftn)          \
  _(fft_hfft)          \
  _(fft_hfft2)         \
  _(fft_hfftn)         \
  _(fft_ifft)          \
  _(fft_ifft2)         \
  _(fft_ifftn)         \
  _(fft_ihfft)         \
  _(fft_ihfft2)        \
  _(fft_ihfftn)        \
  _(fft_irfft)         \
  _(fft_irfft2)        \
  _(fft_irfftn)        \
  _(fft_rfft)          \
  _(fft_rfft2)         \
  _(fft_rfftn)

#define TRN_CONV_OPS(_)     \
  _(conv1d)                 \
  _(conv1d_padding)         \
  _(conv2d)                 \
  _(conv2d_padding)         \
  _(conv3d)                 \
  _(conv3d_padding)         \
  _(conv_transpose1d)       \
  _(conv_transpose2d_input) \
  _(conv_transpose3d_input)
// clang-format on

constexpr Formats kFftFormats{at::kHalf, at::kComplexHalf};
constexpr Formats kComplex32{at::kComplexHalf};

// A cast that belongs to the operator: no launch of its own.
at::Tensor cast_unpriced(const at::Tensor& tensor, at::ScalarType dtype) {
  struct Pause {
    const bool before = Ledger::pause(true);
    ~Pause() { Ledger::pause(before); }
  } pause;
  return tensor.to(dtype);
}

// The operands of a call: whether all of them are narrow, and what they promote to.
struct Operands {
  Formats from;
  bool any = false, all = true;
  at::ScalarType dtype = at::kHalf;

  template <class T>
  void visit(const T& value) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      if (!value.defined()) return;
      any = true;
      all &= from.has(value.scalar_type());
      dtype = value.scalar_type();
    } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
      if (value.has_value()) visit(*value);
    }
  }
};

template <class T>
decltype(auto) widened(const T& value) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    return value.defined() ? cast_unpriced(value, wider(value.scalar_type())) : value;
  } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
    return value.has_value() ? T(widened(*value)) : value;
  } else {
    return T(value);
  }
}

// The composite kernel, which runs on tensors of any device.
template <class Op, class... A>
decltype(auto) composite(A&&... arguments) {
  return Op::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), std::forward<A>(arguments)...);
}

template <class Op, const Formats& from, class Schema = typename Op::schema>
struct Wider;

template <class Op, const Formats& from, class... A>
struct Wider<Op, from, at::Tensor(A...)> {
  static at::Tensor kernel(A... arguments) {
    Operands operands{from};
    (operands.visit(arguments), ...);
    if (C10_LIKELY(!operands.any || !operands.all))
      return composite<Op>(std::forward<A>(arguments)...);
    const at::Tensor made = composite<Op>(widened(arguments)...);
    return cast_unpriced(made, cast_back(made.scalar_type(), operands.dtype));
  }
};

// fft.out(self, ..., out): `Op` into a fresh tensor, cast into `out`.
template <class Op, class Out, class Schema = typename Op::schema>
struct WiderOut;

template <class Op, class Out, class... A>
struct WiderOut<Op, Out, at::Tensor(A...)> {
  static at::Tensor& kernel(A... arguments, at::Tensor& out) {
    const at::Tensor& self = std::get<0>(std::tie(arguments...));
    if (!kFftFormats.has(self.scalar_type()))
      return composite<Out>(std::forward<A>(arguments)..., out);
    TORCH_CHECK(!at::GradMode::is_enabled() || !(self.requires_grad() || out.requires_grad()),
                Op::name, "(): functions with out=... arguments don't support automatic ",
                "differentiation, but one of the arguments requires grad.");
    const at::Tensor made = Wider<Op, kFftFormats>::kernel(std::forward<A>(arguments)...);
    TORCH_CHECK(c10::canCast(made.scalar_type(), out.scalar_type()), Op::name, ": result type ",
                made.scalar_type(), " can't be cast to the desired output type ",
                out.scalar_type());
    at::native::resize_output(out, made.sizes());
    return out.copy_(made);
  }
};

template <class Op, const Formats& from>
void add(torch::Library& library) {
  library.impl(op_name<Op>() + sizeof("aten::") - 1, &Wider<Op, from>::kernel);
}

template <class Op, class Out>
void add_out(torch::Library& library) {
  library.impl(op_name<Out>() + sizeof("aten::") - 1, &WiderOut<Op, Out>::kernel);
}

}  // namespace

void register_wider_composites(torch::Library& library) {
#define FFT(op)                            \
  add<at::_ops::op, kFftFormats>(library); \
  add_out<at::_ops::op, at::_ops::op##_out>(library);
  TRN_FFT_OPS(FFT)
#undef FFT
  add<at::_ops::nanmean, kComplex32>(library);
#define CONV(op) add<at::_ops::op, kComplex32>(library);
  TRN_CONV_OPS(CONV)
#undef CONV
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { register_wider_composites(library); }
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) { register_wider_composites(library); }

}  // namespace trn
