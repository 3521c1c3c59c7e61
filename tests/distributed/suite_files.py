"""The test files of torch.distributed that suites.py runs, and why tests of them do not pass.

To add a file, name it below the devices that its tests should find: as few as they need.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from torch_suite_files import Reason

__all__ = ["CHANGED", "FILES", "REASONS", "File"]


@dataclass(frozen=True)
class File:
    path: str  # below test/distributed
    devices: int = 4
    way: str = "cuda"


# By the devices that its tests find.
_PATHS = {
    2: (
        "_composable/fsdp/test_fully_shard_training.py",
        "_composable/fsdp/test_fully_shard_comm.py",
        "_composable/fsdp/test_fully_shard_mixed_precision.py",
        "checkpoint/test_state_dict.py",
        "_composable/fsdp/test_fully_shard_state_dict.py",
        "_composable/fsdp/test_fully_shard_clip_grad_norm_.py",
        "_composable/fsdp/test_fully_shard_autograd.py",
        "_composable/fsdp/test_fully_shard_memory.py",
        "_composable/fsdp/test_fully_shard_overlap.py",
        "_composable/fsdp/test_fully_shard_extensions.py",
        "_composable/fsdp/test_fully_shard_frozen.py",
        "_composable/fsdp/test_fully_shard_grad_scaler.py",
        "_composable/fsdp/test_fully_shard_state.py",
        "_composable/fsdp/test_fully_shard_logging.py",
        "_composable/fsdp/test_fully_shard_compile.py",
        "_composable/fsdp/test_fully_shard_ignore_params.py",
        "_composable/test_replicate.py",
        "_composable/test_replicate_training.py",
        "_composable/test_replicate_with_fsdp.py",
        "_composable/test_replicate_mixed_precision.py",
        "_composable/test_replicate_with_compiler.py",
        "_composable/test_checkpoint.py",
        "_composable/test_contract.py",
        "pipelining/test_schedule.py",
        "pipelining/test_backward.py",
        "pipelining/test_microbatch.py",
        "pipelining/test_pipe.py",
        "pipelining/test_transformer.py",
        "pipelining/test_unflatten.py",
        "test_c10d_spawn_nccl.py",
        "test_c10d_nccl.py",
        "test_c10d_ops_nccl.py",
        "test_c10d_gloo.py",
        "test_c10d_common.py",
        "test_c10d_spawn_gloo.py",
        "test_dynamo_distributed.py",
        "test_inductor_collectives.py",
        "algorithms/test_join.py",
        "algorithms/ddp_comm_hooks/test_ddp_hooks.py",
        "algorithms/quantization/test_quantization.py",
        "optim/test_zero_redundancy_optimizer.py",
        "optim/test_named_optimizer.py",
        "optim/test_apply_optimizer_in_backward.py",
        "fsdp/test_fsdp_core.py",
        "fsdp/test_fsdp_state_dict.py",
        "fsdp/test_fsdp_optim_state.py",
        "fsdp/test_fsdp_mixed_precision.py",
        "fsdp/test_fsdp_use_orig_params.py",
        "fsdp/test_fsdp_misc.py",
        "fsdp/test_fsdp_clip_grad_norm.py",
        "fsdp/test_fsdp_comm_hooks.py",
        "fsdp/test_fsdp_comm.py",
        "fsdp/test_fsdp_meta.py",
        "fsdp/test_fsdp_sharded_grad_scaler.py",
        "fsdp/test_fsdp_unshard_params.py",
        "fsdp/test_fsdp_grad_acc.py",
        "fsdp/test_fsdp_checkpoint.py",
        "fsdp/test_fsdp_ignored_modules.py",
        "fsdp/test_fsdp_flatten_params.py",
        "fsdp/test_fsdp_fine_tune.py",
        "fsdp/test_fsdp_freezing_weights.py",
        "fsdp/test_fsdp_apply.py",
        "fsdp/test_fsdp_exec_order.py",
        "fsdp/test_fsdp_fx.py",
        "fsdp/test_fsdp_input.py",
        "fsdp/test_fsdp_memory.py",
        "fsdp/test_fsdp_multiple_forward.py",
        "fsdp/test_fsdp_multiple_wrapping.py",
        "fsdp/test_fsdp_overlap.py",
        "fsdp/test_fsdp_pure_fp16.py",
        "fsdp/test_fsdp_traversal.py",
        "fsdp/test_fsdp_uneven.py",
        "fsdp/test_fsdp_backward_prefetch.py",
        "fsdp/test_distributed_checkpoint.py",
        "fsdp/test_checkpoint_wrapper.py",
        "fsdp/test_shard_utils.py",
        "fsdp/test_utils.py",
        "fsdp/test_wrap.py",
        "checkpoint/test_checkpoint.py",
        "checkpoint/test_file_system_checkpoint.py",
        "checkpoint/test_file_system_checkpoint_cpu.py",
        "checkpoint/test_fsdp_model_state.py",
        "checkpoint/test_fsdp_optim_state.py",
        "checkpoint/test_planner.py",
        "checkpoint/test_save_load_api.py",
        "checkpoint/test_traverse.py",
        "checkpoint/test_compatibility.py",
        "checkpoint/test_dedup_tensors.py",
        "checkpoint/test_format_utils.py",
        "checkpoint/test_pg_transport.py",
        "checkpoint/test_async_process_executor.py",
        "checkpoint/test_nested_dict.py",
        "checkpoint/test_fsspec.py",
        "checkpoint/test_hf_storage.py",
        "checkpoint/test_hf_safetensor_e2e.py",
        "checkpoint/test_quantized_hf_storage.py",
        "checkpoint/test_consolidate_hf_safetensors.py",
        "checkpoint/_experimental/test_staging.py",
        "checkpoint/_experimental/test_barriers.py",
        "checkpoint/_experimental/test_builder.py",
        "checkpoint/_experimental/test_checkpointer.py",
        "checkpoint/_experimental/test_checkpoint_process.py",
        "checkpoint/_experimental/test_checkpoint_reader.py",
        "checkpoint/_experimental/test_checkpoint_writer.py",
        "checkpoint/_experimental/test_types.py",
        "test_collective_utils.py",
        "test_data_parallel.py",
        "test_fake_pg.py",
        "test_multi_threaded_pg.py",
        "test_serialization.py",
        "test_pg_wrapper.py",
        "test_nccl.py",
        "test_functional_differentials.py",
        "test_control_collectives.py",
        "test_compute_comm_reordering.py",
        "_tools/test_fsdp2_mem_tracker.py",
        "_tools/test_mem_tracker.py",
        "_tools/test_memory_tracker.py",
        "_tools/test_runtime_estimator.py",
        "_tools/test_sac_estimator.py",
        "tensor/test_attention.py",
    ),
    4: (
        "test_functional_api.py",
        "tensor/test_dtensor.py",
        "tensor/test_math_ops.py",
        "tensor/test_matrix_ops.py",
        "tensor/test_random_ops.py",
        "_composable/fsdp/test_fully_shard_init.py",
        "_composable/fsdp/test_fully_shard_dtensor.py",
        "tensor/test_init.py",
        "tensor/parallel/test_tp_style.py",
        "tensor/parallel/test_tp_examples.py",
        "tensor/parallel/test_parallelize_api.py",
        "tensor/parallel/test_tp_random_state.py",
        "pipelining/test_schedule_multiproc.py",
        "pipelining/test_stage.py",
        "tensor/test_pointwise_ops.py",
        "tensor/test_tensor_ops.py",
        "tensor/test_embedding_ops.py",
        "tensor/test_convolution_ops.py",
        "tensor/test_optimizers.py",
        "tensor/test_utils.py",
        "tensor/test_common_rules.py",
        "tensor/test_experimental_ops.py",
        "tensor/test_dtensor_compile.py",
        "tensor/experimental/test_local_map.py",
        "tensor/experimental/test_register_sharding.py",
        "tensor/experimental/test_tp_transform.py",
        "tensor/debug/test_comm_mode.py",
        "tensor/debug/test_comm_mode_features.py",
        "tensor/debug/test_debug_mode.py",
        "_composable/test_composability/test_2d_composability.py",
        "pipelining/test_dtensor_pp_integration.py",
        "pipelining/test_dtensor_pp_unit_tests.py",
        "test_c10d_functional_native.py",
        "test_c10d_object_collectives.py",
        "fsdp/test_fsdp_hybrid_shard.py",
        "fsdp/test_fsdp_tp_integration.py",
        "fsdp/test_fsdp_dtensor_state_dict.py",
        "fsdp/test_hsdp_dtensor_state_dict.py",
        "checkpoint/test_dtensor_checkpoint.py",
        "checkpoint/test_dtensor_resharding.py",
        "checkpoint/test_fsdp_tp_checkpoint_conversion.py",
        "checkpoint/test_hsdp_checkpoint.py",
        "checkpoint/test_tp_checkpoint.py",
        "checkpoint/test_state_dict_stager.py",
        "checkpoint/test_state_dict_utils.py",
        "checkpoint/test_utils.py",
        "checkpoint/e2e/test_e2e_save_and_load.py",
        "checkpoint/e2e/test_fine_tuning.py",
        "checkpoint/fsdp/test_fsdp_dsd.py",
        "test_composability.py",
        "test_local_tensor.py",
        "test_store.py",
        "tensor/test_dtensor_ops.py",
        "tensor/test_dtensor_export.py",
        "tensor/test_op_strategy.py",
        "tensor/test_op_schema.py",
        "tensor/test_strategy_validation.py",
        "tensor/test_compile_on_one_rank.py",
        "tensor/test_dtensor_testbase.py",
        "tensor/test_dtensor_logging.py",
        "tensor/test_dtensor_dispatch_overhead.py",
        "tensor/debug/test_op_coverage.py",
        "tensor/parallel/test_micro_pipeline_tp.py",
        "tensor/test_single_dim_strategy.py",
        "tensor/test_decompositions.py",
        "tensor/test_placement_types.py",
        "tensor/test_dynamic.py",
        "_shard/sharded_tensor/test_sharded_tensor.py",
        "_shard/sharded_optim/test_sharded_optim.py",
        "_shard/sharding_plan/test_sharding_plan.py",
        "_shard/sharded_tensor/ops/test_embedding.py",
        "_shard/sharded_tensor/ops/test_binary_cmp.py",
        "_shard/sharded_tensor/ops/test_init.py",
        "_shard/sharded_tensor/ops/test_tensor_ops.py",
        "_shard/sharded_tensor/ops/test_embedding_bag.py",
    ),
    8: (
        "test_device_mesh.py",
        "checkpoint/e2e/test_fsdp_ep.py",
        "_composable/test_composability/test_pp_composability.py",
        "tensor/test_redistribute.py",
        "tensor/test_api.py",
        "tensor/test_view_ops.py",
    ),
}
FILES = tuple(File(path, devices) for devices, paths in _PATHS.items() for path in paths)


@dataclass(frozen=True)
class Changed(Reason):
    """Tests of 2.12.1 that torch 2.13 passes on no device, because of a line that 2.12 has not."""

    where: str = ""  # a file of torch 2.13
    line: str = ""  # in it

    def __post_init__(self) -> None:
        reads = f"`torch/{self.where}`: `{self.line.strip()}`."
        object.__setattr__(self, "text", f"{self.text} {reads}")


# A pattern of file::class.test, what a reader can check, and a pattern of the message.
CHANGED = (
    Changed(
        r"test_assert_invalid_mesh_tensor",
        "2.13 takes a mesh tensor of any device, where 2.12 raised ValueError.",
        where="distributed/device_mesh.py",
        line='mesh = mesh.to("cpu")',
    ),
    Changed(
        r"fully_shard_comm.py::TestFullyShardCollectiveOps",
        "The private `foreach_reduce` of 2.13 returns a value more than that of 2.12: the stream.",
        why="too many values to unpack",
        where="distributed/fsdp/_fully_shard/_fsdp_collectives.py",
        line="        post_reduce_stream,",
    ),
    Changed(
        r"test_fully_shard_training_overlap",
        "`patch_all_gather` of 2.13 delays `all_gather_single`, and so not the reference of 2.12, "
        "which calls `all_gather_into_tensor`.",
        why="not less than or equal to",
        where="testing/_internal/common_fsdp.py",
        line="dist.all_gather_single = new_all_gather_into_tensor",
    ),
    Changed(
        r"test_comm_mode_with_c10d",
        "torch's fake group of 2.13 refuses the empty lists that 2.12 took.",
        why="output lists should be equal to world size",
        where="include/torch/csrc/distributed/c10d/FakeProcessGroup.hpp",
        line="assertAllgatherCoalescedOutputTensorLists(",
    ),
    Changed(
        r"test_fsdp_comm.py::TestCommunication",
        "Counts calls of `all_gather_into_tensor`; FSDP of 2.13 calls `all_gather_single`.",
        why="Scalars are not equal",
        where="distributed/fsdp/_flat_param.py",
        line="dist.all_gather_single(",
    ),
    Changed(
        r"test_fsdp_hybrid_shard_basic_setup",
        "Counts calls of `reduce_scatter_tensor`; FSDP of 2.13 calls `reduce_scatter_single`.",
        why="Scalars are not equal",
        where="distributed/fsdp/_runtime_utils.py",
        line="dist.reduce_scatter_single(",
    ),
    Changed(
        r"test_dropout_errors",
        "2.13 adds up a partial tensor for the dropout of devices, `native_dropout`; 2.12 refused.",
        why="RuntimeError not raised",
        where="distributed/tensor/_ops/_random_ops.py",
        line="register_single_dim_strategy(_op, allow_uneven_sharding=True)(",
    ),
    Changed(
        r"test_nested_invoke_subgraph",
        "2.13 lists what a nested region calls, and not the region, which it inlines.",
        why="invoke_subgra",
        where="_dynamo/config.py",
        line="inline_single_use_invoke_subgraph: bool = True",
    ),
    Changed(
        r"test_dtensor_data_dependent_index_and_slice",
        "2.13 keeps a script's own check and the node's name, `ge`; 2.12 made another, `ge_1`.",
        why="ge_1",
        where="fx/passes/runtime_assert.py",
        line='preserve_runtime_assert_key = "_fx_runtime_assert_preserve"',
    ),
)
REASONS = (
    *CHANGED,
    Reason(
        r"test_fsdp_dup_tensors_diff_source",
        "Expects three graphs, as Dynamo of 2.12 makes; that of 2.13 makes one, on the CPU too.",
        why="Scalars are not equal",
    ),
    Reason(
        r"test_annotate_aot_export_joint_with_descriptors_alone",
        "Expects the names that nodes have in 2.12: `t_16` is `t_12` in 2.13, on the CPU too.",
        why="length of the sequences mismatch",
    ),
    Reason(
        r"fully_shard_comm.py::TestFullyShardCollectiveOps",
        "128 ranks as threads: more than the limit of a test on a shared host.",
        why="more than",
    ),
    Reason(
        r"test_depthwise_convolution",
        "Ten training steps on inputs of 59 million elements, whole and sharded, on each of four "
        "ranks: more than the limit of a test on a shared host.",
        why="more than",
    ),
    Reason(
        r"test_diff_hyperparams",
        "Ten training steps for each of 96 combinations of options: more than the limit of a "
        "test on a shared host.",
        why="more than",
    ),
    Reason(
        r"ProcessGroupNCCLOpTest.test_(allreduce|reduce)_ops",
        "Expects NCCL to refuse bitwise reductions, which trn has.",
        why="ValueError not raised",
    ),
    Reason(
        r"",
        "Runs only where no device of CUDA is.",
        why="CUDA is available, cannot test CUDA unavailable",
    ),
    Reason(
        r"",
        "Reads the log that NCCL writes.",
        why="nccl_log",
    ),
    Reason(
        r"test_norm_modules",
        "Batch norm refuses float32 running statistics beside half-precision parameters, as on the "
        "CPU; CUDA refuses them in the backward pass.",
        why="expected scalar type (BFloat16|Half) but found Float",
    ),
    Reason(
        r"test_tp_transform_e2e",
        "`run_decompositions` leaves `aten.linear` whole, which has a kernel of its own on trn.",
        why="_c10d_functional.all_reduce",
    ),
    Reason(
        r"test_compile_on_one_rank.py",
        "torch makes the number of `x[mask] = 0` on the host for CUDA alone, by name, and "
        "elsewhere on the device, whose index the graph then has.",
        why="Graph on rank",
    ),
    Reason(
        r"",
        "Asks Triton for the speed of a GPU, which loads `libcuda.so`.",
        why="libcuda.so cannot found",
    ),
    Reason(
        r"_shard/",
        "Sends tensors of devices by RPC, which TensorPipe does for CUDA alone.",
        why="carries tensors of the CPU only|serializePyObject|originated at tensorpipe",
    ),
    Reason(
        r"ops/test_embedding_bag.py",
        "Gives `embedding_bag` random offsets, of which the first is not 0: refused as on the CPU; "
        "CUDA does not look.",
        why="has to start from position 0",
    ),
    Reason(
        r"test_sharded_tensor_to_cuda",
        "A sharded tensor that moves from the CPU with `.cuda()` says trn where it is placed.",
        why="'trn' != 'cuda'",
    ),
    Reason(
        r"test_sac_estimator.py",
        "Times each operator of a transformer, as often as for a benchmark: more than the limit of "
        "a test on a shared host.",
        why="more than",
    ),
    Reason(
        r"_tools/",
        "Trains in a mode that looks at each operator: more than the limit of a test on a shared "
        "host.",
        why="more than",
    ),
    Reason(
        r"test_fsdp_overlap.py",
        "Compares the processor time of launches with that of a wait, in which CUDA's host spins: "
        "simulated time takes none.",
        why="False is not true",
    ),
    Reason(
        r"test_param_layout_mismatch_error",
        "Rank 1 refuses the model and ends; rank 0 goes on, since NCCL waits for nobody. On trn it "
        "raises as well, and names the rank that left.",
        why="has left the group",
    ),
    Reason(
        r"test_pass_nccl_options_config|test_shrink_group",
        "NCCL's own options, and communicators that shrink.",
    ),
    Reason(
        r"NCCLTraceTest|NCCLTraceTestDumpOnTimeout",
        "NCCL's flight recorder, in its own class.",
    ),
)
