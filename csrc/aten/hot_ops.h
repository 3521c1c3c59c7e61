// The operators with an unboxed kernel, one a line; every other operator takes the boxed one.
#pragma once

#include <ATen/ops/_local_scalar_dense_ops.h>
#include <ATen/ops/_reshape_alias_ops.h>
#include <ATen/ops/add_ops.h>
#include <ATen/ops/addcdiv_ops.h>
#include <ATen/ops/addcmul_ops.h>
#include <ATen/ops/as_strided_ops.h>
#include <ATen/ops/div_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/empty_strided_ops.h>
#include <ATen/ops/exp_ops.h>
#include <ATen/ops/fill_ops.h>
#include <ATen/ops/gelu_backward_ops.h>
#include <ATen/ops/gelu_ops.h>
#include <ATen/ops/lerp_ops.h>
#include <ATen/ops/mean_ops.h>
#include <ATen/ops/mul_ops.h>
#include <ATen/ops/neg_ops.h>
#include <ATen/ops/relu_ops.h>
#include <ATen/ops/sqrt_ops.h>
#include <ATen/ops/sub_ops.h>
#include <ATen/ops/sum_ops.h>
#include <ATen/ops/tanh_ops.h>
#include <ATen/ops/unfold_ops.h>
#include <ATen/ops/view_ops.h>
#include <ATen/ops/zero_ops.h>

// clang-format off
#define TRN_METADATA_OPS(_) \
  _(view)                   \
  _(as_strided)             \
  _(_reshape_alias)         \
  _(unfold)

#define TRN_HOT_OPS(_)      \
  _(_local_scalar_dense)    \
  _(add_Tensor)             \
  _(add__Tensor)            \
  _(sub_Tensor)             \
  _(sub__Tensor)            \
  _(mul_Tensor)             \
  _(mul__Tensor)            \
  _(div_Tensor)             \
  _(div__Tensor)            \
  _(addcmul_)               \
  _(addcdiv_)               \
  _(lerp__Scalar)           \
  _(sqrt)                   \
  _(exp)                    \
  _(neg)                    \
  _(tanh)                   \
  _(relu)                   \
  _(gelu)                   \
  _(gelu_backward)          \
  _(sum_dim_IntList)        \
  _(mean_dim)               \
  _(fill__Scalar)           \
  _(zero_)
// clang-format on
