"""PyTorch's device-generic test files that torch_suite.py runs, and why tests of them do not pass.

To add a file, name it in FILES with the ways to run it; to say why a test does not pass, add a row
to REASONS.
"""

from dataclasses import dataclass

__all__ = ["FILES", "REASONS", "File", "Reason"]


@dataclass(frozen=True)
class File:
    path: str  # below test/, without .py
    ways: tuple[str, ...] = ("trn",)
    every: int = 1  # one test in so many, chosen by name
    without: str = ""  # tests that take undeclared gigabytes, or are of kernels that CUDA alone has


BOTH = ("trn", "cuda")

FILES = (
    File("test_view_ops", BOTH),
    File("test_indexing", BOTH),
    File("test_shape_ops", BOTH),
    File("test_type_promotion", BOTH),
    File("test_torch", BOTH),
    File("test_reductions", BOTH),
    File("test_sort_and_select", BOTH),
    File("test_sparse", BOTH),
    File("test_nn", BOTH),
    File("test_native_mha", BOTH),
    File("test_modules", BOTH),
    File("test_scatter_gather_ops", without="test_gather_large"),
    File("test_tensor_creation_ops"),
    File("test_segment_reductions"),
    File("test_transformers", ("cuda",), without="TestSDPACudaOnly"),  # CUDA's own kernels
    File("test_sparse_csr"),
    File("test_nestedtensor"),
    File("test_masked"),
    File("test_maskedtensor", ("cuda",)),
    File("test_accelerator", BOTH),
    File("test_autocast"),
    File("test_complex"),
    File("test_dlpack"),
    File("test_autograd", BOTH),
    File("test_binary_ufuncs"),
    File("test_foreach"),
    File("test_linalg"),
    File("test_optim"),
    File("test_serialization"),
    File("test_spectral_ops"),
    File("test_unary_ufuncs"),
    File("test_utils", BOTH),
    File("nn/test_convolution"),
    File("nn/test_dropout"),
    File("nn/test_embedding", BOTH),
    File("nn/test_init"),
    File("nn/test_lazy_modules"),
    File("nn/test_load_state_dict"),
    File("nn/test_module_hooks"),
    File("nn/test_multihead_attention"),
    File("nn/test_packed_sequence"),
    File("nn/test_parametrization"),
    File("nn/test_pooling"),
    File("nn/test_pruning"),
    File("test_content_store"),
    File("test_custom_ops", ("cuda",)),
    File("test_decomp", every=20),
    File("test_expanded_weights"),
    File("test_fake_tensor", ("cuda",), every=10),
    File("test_functionalization_of_rng_ops", ("cuda",)),
    File("test_fx"),
    File("test_fx_experimental"),
    File("test_legacy_vmap"),
    File("test_matmul_cuda"),
    File("test_meta", every=50),
    File("test_namedtensor"),
    File("test_numpy_interop"),
    File("test_ops", every=80),
    File("test_ops_fwd_gradients", every=20),
    File("test_ops_gradients", every=20),
    File("test_ops_jit", every=10),
    File("test_prims"),
    File("test_proxy_tensor", ("cuda",), every=20),
    File("test_python_dispatch"),
    File("test_scaled_matmul_cuda"),
    File("test_schema_check", ("cuda",), every=10),
    File("test_stateless_rng", ("cuda",)),
    File("test_testing"),
    File("test_varlen_attention", ("cuda",)),
    File("complex_tensor/test_complex_tensor"),
    File("functorch/test_aotdispatch", ("cuda",), every=20),
    File("functorch/test_eager_transforms", ("cuda",)),
    File("functorch/test_ops", ("cuda",), every=40),
    File("functorch/test_vmap", ("cuda",), every=10),
)


@dataclass(frozen=True)
class Reason:
    tests: str  # a pattern of way/file::class::test
    text: str
    why: str = ""  # a pattern of the message


REASONS = (
    Reason(
        r"::test_(broadcast_fn_)?map2?_",
        "`map_` exists: PyTorch has it for the CPU only.",
    ),
    Reason(
        r"test_tensor_storage_type",
        "`torch.FloatStorage` for every device but CUDA and XPU.",
    ),
    Reason(
        r"test_grad_scaling_state_dict",
        "`torch.FloatTensor` for every device but CUDA and XPU.",
    ),
    Reason(
        r"test_grad_scaler_deprecated_warning",
        "`torch.<device>.amp.GradScaler` or `torch.cpu.amp.GradScaler`.",
    ),
    Reason(
        r"test_stable_sort_against_numpy",
        "Index tensors of `index_fill` on the host, which CUDA refuses: it leaves the test before.",
        why="at least two devices",
    ),
    Reason(
        r"^cuda/test_indexing::.*test_index_put_deterministic_with_optional_tensors",
        "The text of CUDA's error and, of the same call on the host, the host's, which trn gives.",
        why="must match",
    ),
    Reason("^cuda/", "The test leaves out CUDA, on which a kernel asserts.", why="CUDA.* asserts"),
    Reason(
        "^cuda/nn/test_embedding::.*test_embedding_bag_out_of_bounds_idx",
        "The test leaves out CUDA, which checks no bounds; on trn it passes under its own name.",
        why="no out-of-bounds check on CUDA",
    ),
    Reason(
        r"test_masked::.*test_mask_layout_sparse_coo_masked_prod_.*_float16",
        "A tolerance for the CPU by name, of products in float16 in two orders.",
        why="not close",
    ),
    Reason(
        r"test_expanded_weights::TestExpandedWeightModule",
        "On the CPU by name, with an input that a later test of the pair marks as requiring a "
        "gradient: `_multiple_inputs_trn` sorts before `_trn`, but not before `_cpu`.",
        why="'NoneType' object has no attribute 'clone'",
    ),
    Reason(
        r"test_nn::.*test_upsamplingBiMode2d_.*(_uint8_|_lanczos_)",
        "Images of uint8 and Lanczos resizing for the CPU by name: trn has what the host has.",
        why="not raised|only supported on CPU",
    ),
    Reason(
        r"test_prims::.*test_functional_rng_wrappers",
        "A table inside of `torch._prims.rng_prims` that has the CPU, CUDA, HPU and XPU.",
        why="Backend not supported",
    ),
    Reason(
        r"test_nestedtensor::.*test_dummy_mha_with_nt",
        "Attention of jagged tensors without a kernel of CUDA, which the test skips on the CPU "
        "(pytorch/pytorch issue 133644).",
        why="NestedTensorImpl doesn't support sizes|No viable backend",
    ),
    Reason(
        r"^cuda/functorch/.*TestHigherOrderOperatorInteraction",
        "An operator of the test's own with kernels for the CPU's and CUDA's dispatch keys.",
        why="could not find kernel for HigherOrderOperator mysum",
    ),
    Reason(
        r"^cuda/functorch/test_vmap::.*test_randomness_backend",
        "Dropout inside of a fused kernel, as CUDA's have it. That of trn, as the CPU's, has none: "
        "with dropout attention takes the math path.",
        why="No available kernel",
    ),
    Reason("^cuda/", "A check for MAGMA, a library of builds with CUDA.", why="no MAGMA"),
    Reason(
        r"^cuda/test_utils::.*test_device_mode_ops_torch__scaled_mm",
        "A check for GPUs of compute capability 8.9 or more, which the alias does not claim.",
        why="Requires CUDA SM",
    ),
    Reason(
        r"test_spectral_ops::.*test_fft_half_and_bfloat16_errors_.*_float16",
        "FFT of float16 raises on every device but CUDA: trn has what CUDA has.",
    ),
    Reason(
        r"nn/test_convolution::.*test_conv_backend",
        "Names of the CPU's and CUDA's kernels of convolution: a device outside of PyTorch's own "
        "has `Overrideable`.",
        why="_ConvBackend.Overrideable",
    ),
    Reason(
        r"test_linalg::.*test_linalg_lstsq_input_checks",
        "The text of CUDA's error: trn has all drivers that the host has.",
        why="not supported on CUDA",
    ),
    Reason(
        r"test_linalg::.*test_svd_",
        "A table of drivers that has the CPU and CUDA.",
        why="KeyError: 'trn",
    ),
    Reason(
        r"test_autograd::.*test_unused_output_device",
        "`torch._C._broadcast_coalesced`, which copies between GPUs in builds with CUDA.",
    ),
    Reason(
        r"^trn/test_autograd::.*test_consumer_to_single_producer_case_3",
        "The device cuda by name.",
        why="not compiled with CUDA",
    ),
    Reason(
        r"^cuda/test_autograd::TestAutogradMultipleDispatch",
        "Kernels registered for CUDA's dispatch keys; trn's are those of PrivateUse1.",
    ),
    Reason(
        r"^cuda/test_autograd::.*test_reentrant_parent_error_on_cpu",
        "Backward passes of two devices at once: trn's run on the calling thread, one by one "
        "(docs/decisions/0004).",
    ),
    Reason(
        r"test_foreach::.*test_parity__foreach_pow_slowpath_inplace_.*complex64",
        "Where a complex `pow` overflows, PyTorch's kernel gives inf or NaN by the layout of the "
        "operand, on the CPU too.",
        why="nan at index",
    ),
    Reason(
        r"test_binary_ufuncs::.*test_type_promotion__refs_copysign",
        "A reference in Python that takes no scalar of the CPU, on any device.",
        why="on the same device",
    ),
    Reason(
        r"^cuda/test_utils::.*test_infer_device_state_recursive_multi_gpu",
        "The name of the device inside of `torch.utils.checkpoint`, which hears the real one.",
    ),
    Reason(
        r"test_modules::.*test_gradgrad_nn_Transformer",
        "Skipped for the CPU by name, whose fused attention, as that of trn, lacks a derivative.",
        why="flash_attention_for_cpu_backward is not implemented",
    ),
    Reason(
        r"test_modules::.*test_memory_format_nn_GroupNorm",
        "PyTorch's derivative keeps channels last for the CPU by name. The test leaves out CUDA, "
        "MPS and XPU, whose gradient is contiguous, as that of trn.",
        why="False is not true",
    ),
    Reason(
        r"test_sparse::.*test_empty_like_",
        "The text of an error, which has the backends SparseCPU, SparseCUDA and SparseMPS.",
        why="empty_strided",
    ),
    Reason(
        r"test_sparse::.*test_gradcheck_mm_",
        "The text of an error, which has the CPU and CUDA.",
        why="computation on trn is not implemented",
    ),
    Reason(
        r"test_sparse::.*test_print_(un)?coalesced_",
        "Printed tensors, kept in files (`test/expect`) for the CPU and CUDA.",
        why="I got this output",
    ),
    Reason(
        r"^cuda/test_sparse::.*(test_sparse_addmm|test_sparse_dense_mul)_",
        "The test leaves out CUDA, whose sparse kernels lack 16 bits, and bool without `coalesce`.",
        why="addmm_sparse_cuda is not implemented|only with coalesced inputs",
    ),
    Reason(
        r"^cuda/test_sparse::.*test_print_(un)?coalesced_",
        "CUDA's kernel coalesces a sum of sparse tensors; that of trn, as the CPU's, does not.",
        why="nnz: 2",
    ),
    Reason(
        r"^cuda/test_sparse::.*test_cuda_sparse_cpu_dense_add",
        "The text of CUDA's error: that of trn names both devices.",
        why="found at least two devices",
    ),
    Reason(
        r"test_sparse_csr::.*test_block_triangular_solve_",
        "Unit diagonals, left out for the CPU by name: MKL, which trn calls too, lacks them.",
        why="without blocksize",
    ),
    Reason(
        r"test_sparse_csr::.*shape_and_device_inference___from_list_",
        "Lists, whose device can't be inferred: the test leaves them out for CUDA by name.",
        why="device",
    ),
    Reason(
        r"^cuda/test_torch::.*(test_cuda_not_built|test_no_cuda_monkeypatch)",
        "Errors of a build without CUDA, which the alias stands in for.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_pickle_generator",
        "The offset of CUDA's Philox generator: trn draws the numbers of the CPU's.",
        why="does not use offset",
    ),
    Reason(
        r"^cuda/test_torch::.*test_dim_order$",
        "`Tensor.dim_order` of torch 2.13 loses its argument under any torch function mode, which "
        "the alias is.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_print$",
        "Tensor types of `torch._tensor_classes`, which a build with CUDA fills.",
        why="not available",
    ),
    Reason(
        r"^cuda/test_torch::.*test_addcmul_cuda_errors_with_cpu_scalars",
        "CUDA refuses a scalar of the CPU as some of the operands: trn takes it, as the CPU does.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*test_scatter_reduce_multiply_unsupported_dtypes_",
        "CUDA refuses these types: trn has what the host has.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_torch::.*(test_dtypetensor_warnings|test_set_default_tensor_type_warnings)",
        "Warnings of deprecated tensor types, which PyTorch's C++ gives for CUDA's own.",
        why="no warning caught",
    ),
    Reason(
        r"^cuda/test_torch::.*test_storage_meta_errors_",
        "The text of an error in sharing a storage, which a build without CUDA words otherwise.",
        why="CUDA is not available",
    ),
    Reason(
        r"^cuda/test_torch::.*test_sync_warning",
        "`torch.cuda.set_sync_debug_mode`, which raises an error that says why.",
        why="not watched",
    ),
    Reason(
        r"^cuda/test_torch::.*test_advancedindex_mixed_devices_error",
        "The name of the device in an error's text: trn.",
        why="must match|does not match",
    ),
    Reason(
        r"^cuda/test_nn::.*test_upsamplingNearest2d_launch_fail",
        "An expected failure: more rows than CUDA can launch, which trn computes.",
        why="Unexpected success",
    ),
    Reason(
        r"^cuda/test_nn::.*test_(RNN|LSTM|GRU)_grad_and_gradgrad",
        "The second derivative of cuDNN's layers raises an error: trn has it, as the CPU does.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_nn::.*test_ctc_loss_cudnn",
        "The name of cuDNN's node in the graph of autograd.",
        why="CudnnCtcLossBackward",
    ),
    Reason(
        r"^cuda/test_modules::.*test_memory_format_nn_LazyConv",
        "An expected failure of CUDA's, where trn passes.",
        why="Unexpected success",
    ),
    Reason(
        r"^cuda/test_native_mha::.*test_native_multihead_self_attention_.*_float16",
        "A tolerance for CUDA's random numbers: logits are rounded to float16. The values are "
        "those of the CPU, bit for bit, on which the test runs in float32 alone.",
        why="not close",
    ),
    Reason(
        r"^cuda/test_transformers::.*test_multiheadattention_fastpath_fp16_head_dim_alignment",
        "Logits beyond float16, which CUDA's fused kernel does not round. The values are those of "
        "the CPU's fast path, on which the test does not run.",
        why="is not true",
    ),
    Reason(
        r"^cuda/test_transformers::.*(test_invalid_fused_inputs_invalid_dtype|"
        r"test_invalid_sdpa_kernel_grouped_query_attention_cuda|"
        r"test_mem_efficient_fail_bfloat16_less_than_sm80)",
        "CUDA's memory-efficient kernel refuses float64, grouped heads and, on GPUs before Ampere, "
        "bfloat16. The fused kernel of trn, which stands for it, takes them.",
        why="not raised|not triggered",
    ),
    Reason(
        r"^cuda/test_transformers::.*test_mem_eff_attention",
        "`_scaled_dot_product_efficient_attention` by its own name, which raises an error that "
        "says what to call.",
        why="_scaled_dot_product_efficient_attention has no kernel",
    ),
    Reason(
        r"^cuda/test_native_mha::.*test_transform_bias_rescale_qkv_nested",
        "The padding inside of an operator, which CUDA's kernel fills with zeros up to a multiple "
        "of 8 and the CPU's, on which the test does not run, fills with the bias.",
        why="not close",
    ),
    Reason(
        r"test_autograd::.*test_current_graph_task_execution_order",
        "An error where another thread runs the backward pass: trn's runs on the calling thread "
        "(docs/decisions/0004).",
        why="not raised",
    ),
    Reason(
        r"^trn/test_autograd::.*test_thread_shutdown",
        "A thread of autograd's, which the test expects of CUDA, XPU and MPS alone.",
        why="thread_shutdown",
    ),
    Reason(
        r"test_autograd::.*test_dataparallel_saved_tensors_hooks",
        "`torch._C._scatter`, which copies between GPUs in builds with CUDA.",
        why="_scatter",
    ),
    Reason(
        r"^cuda/test_autograd::.*test_get_data_and_hooks_from_raw_saved_variable",
        "The identity of a hook of saved tensors: the alias wraps it, so that it hears cuda.",
        why="not true",
    ),
    Reason(
        r"^cuda/test_autograd::.*test_gradcheck_adjusted_atol_complex_inputs",
        "The test runs on the CPU alone where there is CUDA; on trn it passes under its own name.",
        why="CPU-only",
    ),
    Reason(
        r"^cuda/test_custom_ops::.*(test_impl_on_existing_op_with_cpu_registration_key_CUDA|"
        r"test_backward_impl_on_existing_op_with_key_key_AutogradCUDA)",
        "A check of `torch._custom_ops` for kernels of CUDA's dispatch keys; trn's are those of "
        "PrivateUse1.",
        why="not raised",
    ),
    Reason(
        r"^cuda/test_custom_ops::.*test_data_dependent_compile",
        "A count of graph breaks: Dynamo traces the mode of the alias as well.",
        why="Expected 1 but got 3",
    ),
    Reason(
        r"^cuda/test_custom_ops::.*test_factory_function",
        "The name of the device in an error's text: trn.",
        why="registered for trn",
    ),
    Reason(
        r"^cuda/test_custom_ops::.*test_library_source_location",
        "The line of a script in an error's text, which has that of the alias.",
        why="not found in",
    ),
    Reason(
        r"^cuda/functorch/test_eager_transforms::.*test_compile_vmap_hessian",
        "An expected failure of CUDA's, where trn passes.",
        why="Unexpected success",
    ),
    Reason(
        r"test_optim::.*test_fused_error_on_params_on_meta_",
        "A table of devices that have fused optimizers; trn has them.",
        why="not supported for fused",
    ),
    Reason(
        r"test_nondeterministic_alert_",
        "A table of kernel names that has CUDA's and XPU's.",
    ),
)
