"""Rows of OPS whose times no sweep holds between the limits of the chip.

Their programs compute the operator, so their status is *modelled*; where a table speaks of time
they are called *computed*. A row leaves this list when tests/pricing/bounded.py reaches it: by
calls made from schemas, or by a family of tests/pricing/families.py.
"""

__all__ = ["UNBOUNDED", "worth"]

UNBOUNDED = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _addmm_activation
    _amp_foreach_non_finite_check_and_unscale _batch_norm_no_update _batch_norm_with_update
    _cat _chunk_cat _convolution _copy_from _copy_from_and_resize _foreach_zero _fused_adagrad
    _fused_adam _fused_adamw _fused_rms_norm_backward _fused_sgd _index_put_impl
    _local_scalar_dense _native_batch_norm_legit
    _native_batch_norm_legit_no_training _pin_memory _safe_softmax
    _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_flash_attention_for_cpu_backward
    _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_fused_attention_overrideable_backward _scaled_mm _to_copy _unique2
    _unsafe_index _unsafe_index_put _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward
    _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward _upsample_nearest_exact2d
    _upsample_nearest_exact2d_backward adaptive_avg_pool2d adaptive_max_pool2d
    adaptive_max_pool2d_backward addbmm addmv argsort as_strided_scatter atan2
    avg_pool1d avg_pool2d_backward avg_pool3d avg_pool3d_backward baddbmm batch_norm
    batch_norm_backward binary_cross_entropy binary_cross_entropy_with_logits bincount
    bucketize cauchy celu clamp clone col2im constant_pad_nd contiguous conv1d conv2d conv3d
    convolution_backward convolution_backward_overrideable convolution_overrideable deg2rad
    diagonal_backward dot dropout embedding equal exponential fill floor_divide fmod
    frobenius_norm full full_like geometric glu_backward huber_loss huber_loss_backward hypot
    index_copy index_fill index_put isfinite isinf item kthvalue l1_loss layer_norm lift_fresh_copy
    linear log_normal log_softmax logcumsumexp logsumexp masked_fill masked_scatter
    masked_select max_pool1d max_pool2d max_pool2d_with_indices_backward
    max_pool3d_with_indices max_pool3d_with_indices_backward median mish_backward msort
    multinomial mv nanmedian nansum native_batch_norm_backward native_group_norm_backward
    native_layer_norm_backward new_full new_ones new_zeros nll_loss nll_loss2d
    nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward nonzero
    normal_functional ones ones_like pixel_shuffle pixel_unshuffle put rad2deg rand rand_like
    randint randint_like randn randn_like random reflection_pad1d reflection_pad2d relu6
    remainder repeat repeat_interleave replication_pad1d replication_pad2d rms_norm
    scalar_tensor scaled_dot_product_attention scatter scatter_reduce searchsorted
    select_backward select_scatter slice_backward slice_scatter smooth_l1_loss
    smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward softmax square stack std
    std_mean take tril_indices triu_indices true_divide unfold_backward uniform
    unique_consecutive upsample_bicubic2d upsample_bicubic2d_backward
    upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward
    upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d
    upsample_nearest2d_backward var_mean vdot zero zeros zeros_like
    """.split()
)


def worth(name: str, status: str) -> str:
    """The status of a row's price as tables give it."""
    return "computed" if status == "modelled" and name in UNBOUNDED else status
