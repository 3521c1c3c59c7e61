// Every kernel of one instruction set, and its table: kernels_<isa>.cpp includes this once.
#pragma once

#include "attention-inl.h"
#include "gemm-inl.h"
#include "mx-inl.h"
#include "stored-inl.h"

namespace trn::numerics::TRN_NAMESPACE {

extern const Kernels kernels;
const Kernels kernels = {
    .lanes = lanes,
    .encode = encode,
    .decode = decode,
    .round_to = round_to,
    .convert = convert,
    .random_words = random_words,
    .mx_row = mx_row,
    .mx_columns = mx_columns,
    .mx_decode_row = mx_decode_row,
    .mx_widen = mx_widen,
    .round_row = round_row,
    .round_columns = round_columns,
    .transpose = transpose,
    .finish_row = finish_row,
    .scale_scores = scale_scores,
    .exponentiate = exponentiate,
    .softmax_backward = softmax_backward,
    .dots = dots,
#if TRN_ISA >= 2
    .stored_dots = stored_dots,
    .stored_panel = stored_panel,
#else
    .stored_dots = nullptr,
    .stored_panel = nullptr,
#endif
    .panel_columns = panel_columns,
    .tile_rows = tile_rows,
    .pair_tile_rows = tile_rows,
    .pairs_by_steps = true,
    .gemm_float32 = gemm_run<Float32Product>,
    .gemm_of_pairs = gemm_of_pairs,
    .gemm_bf16 = nullptr,
    .gemm_taps = nullptr,
    .begin_bf16 = nullptr,
    .end_bf16 = nullptr,
};

}  // namespace trn::numerics::TRN_NAMESPACE
