"""Every public name of `torch.cuda` and its modules, and what each is under `--as-cuda`.

A name is in one of four tables: SAME, which `torch.trn` has too; SPECIAL, which aliases/cuda.py
makes; KEPT, which stay as they are; REFUSED, by the reason. A name of `memory`, `random`, `streams`
and `graphs` is that of torch.cuda itself. tests/aliases/test_cuda_names.py walks torch.cuda, so a
version of torch with a new name fails it: add the name to a table, and to SINCE. Checked on torch
2.13.0 and 2.14.1.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch

__all__ = [
    "COMPILING",
    "FALSE",
    "KEPT",
    "MODULES",
    "REFUSED",
    "SAME",
    "SINCE",
    "SPECIAL",
    "TENSOR_WORDS",
    "reason",
    "rows",
]

# Modules of torch.cuda whose public names are in the tables, as "module.name".
MODULES = ("amp", "comm", "gds", "nccl", "nvtx", "profiler", "sparse", "tunable")
# Modules with the names of torch.cuda itself; what only the module has is "module.name".
PARTS = ("graphs", "memory", "random", "streams")

# Names of the tables that torch does not have before a version.
SINCE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "2.14": frozenset(
            "export_dot export_graph_data gds.is_available graph_annotations "
            "graphs.register_graph_capture_end_hook graphs.register_graph_capture_start_hook "
            "graphs.register_graph_destroy_hook graphs.register_graph_instantiate_hook "
            "graphs.register_graph_replay_end_hook graphs.register_graph_replay_start_hook "
            "tunable.get_cublaslt_requested_algo_count "
            "tunable.set_cublaslt_requested_algo_count".split()
        )
    }
)


def _there(names: Iterable[str]) -> tuple[str, ...]:
    """Those that the installed torch has."""
    new = {name for version, of in SINCE.items() if torch.__version__ < version for name in of}
    return tuple(name for name in names if name not in new)


SAME = tuple(
    """
    CUDAGraph Event Stream StreamContext can_device_access_peer current_device current_stream
    default_generators default_stream device device_count device_memory_used device_of empty_cache
    get_allocator_backend get_arch_list get_device_capability get_device_name get_device_properties
    get_gencode_flags get_per_process_memory_fraction get_rng_state get_rng_state_all
    get_sync_debug_mode graph graph_pool_handle has_half has_magma init initial_seed ipc_collect
    is_available is_bf16_supported is_current_stream_capturing is_initialized is_tf32_supported
    list_gpu_processes manual_seed manual_seed_all max_memory_allocated max_memory_cached
    max_memory_reserved mem_get_info memory_allocated memory_cached memory_reserved memory_snapshot
    memory_stats memory_stats_as_nested_dict memory_summary reset_accumulated_memory_stats
    reset_max_memory_allocated reset_max_memory_cached reset_peak_memory_stats seed seed_all
    set_device set_per_process_memory_fraction set_rng_state set_rng_state_all set_stream
    set_sync_debug_mode stream synchronize
    nvtx.mark nvtx.range nvtx.range_end nvtx.range_pop nvtx.range_push nvtx.range_start
    profiler.profile profiler.start profiler.stop
    """.split()
)

# Functions that return False.
FALSE = _there(
    "amp.amp_definitely_not_available gds.is_available tunable.is_enabled "
    "tunable.record_untuned_is_enabled tunable.tuning_is_enabled".split()
)

COMPILING = ("jiterator._create_jit_fn", "jiterator._create_multi_output_jit_fn")

SPECIAL = MappingProxyType(
    {
        **dict.fromkeys(
            [
                f"{prefix}{kind}Tensor"
                for prefix in ("", "sparse.")
                for kind in "BFloat16 Bool Byte Char Double Float Half Int Long Short".split()
                if prefix + kind != "sparse.Bool"
            ],
            "trn tensor types: constructor, `isinstance`, `Tensor.type`",
        ),
        **dict.fromkeys(
            [
                f"{kind}Storage"
                for kind in "BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half "
                "Int Long Short".split()
            ],
            "trn storage types",
        ),
        **dict.fromkeys(
            ["amp.GradScaler", "amp.autocast", "amp.custom_bwd", "amp.custom_fwd"],
            "through `torch.amp`",
        ),
        **dict.fromkeys(COMPILING, "checks the source; the kernel raises an error when called"),
        "cudart": "`cudaProfilerStart`, `cudaProfilerStop`, `cudaMemGetInfo`; others raise",
        **dict.fromkeys(FALSE, "False"),
    }
)

KEPT = MappingProxyType(
    {
        **dict.fromkeys(
            "AcceleratorError CudaError DeferredCudaCallError OutOfMemoryError".split(),
            "exception types, for `except` clauses",
        ),
        "cudaStatus": "numbers",
        **dict.fromkeys(
            "comm.broadcast comm.broadcast_coalesced comm.gather comm.reduce_add "
            "comm.reduce_add_coalesced comm.scatter nccl.all_gather nccl.all_reduce nccl.broadcast "
            "nccl.is_available nccl.reduce nccl.reduce_scatter".split(),
            "copies and sums over devices of one process",
        ),
        "nccl.unique_id": "128 random bytes",
        **dict.fromkeys(
            _there("graphs jiterator nccl nvtx profiler sparse tunable amp comm gds memory random "
                   "streams green_contexts graph_annotations".split()),
            "a module",
        ),
    }
)  # fmt: skip

REFUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        reason: _there(names.split())
        for reason, names in {
            "it captures both passes: use torch.compile, or torch.cuda.graph for a whole step": (
                "make_graphed_callables"
            ),
            "a captured graph has no nodes of CUDA": "export_dot export_graph_data",
            "a captured graph calls no hooks": (
                "graphs.register_graph_capture_end_hook graphs.register_graph_capture_start_hook "
                "graphs.register_graph_destroy_hook graphs.register_graph_instantiate_hook "
                "graphs.register_graph_replay_end_hook graphs.register_graph_replay_start_hook"
            ),
            "there is one memory pool per core": (
                "MemPool use_mem_pool CUDAPluggableAllocator change_current_allocator "
                "caching_allocator_alloc caching_allocator_delete caching_allocator_disabled "
                "caching_allocator_enable"
            ),
            "pinned host memory is not tracked": (
                "host_memory_stats host_memory_stats_as_nested_dict "
                "reset_accumulated_host_memory_stats reset_peak_host_memory_stats"
            ),
            "there is no management library: use torch.trn.counters()": (
                "clock_rate memory_usage power_draw temperature utilization"
            ),
            "it accesses a CUDA library": (
                "check_error current_blas_handle current_solver_handle ExternalStream "
                "GreenContext get_stream_from_external nccl.version"
            ),
            "a communicator of several processes is a group: use torch.distributed": (
                "nccl.init_rank"
            ),
            "the device cannot read tensors from storage": (
                "gds.GdsFile gds.gds_deregister_buffer gds.gds_register_buffer"
            ),
            "kernels are not tuned: remove the call": (
                "tunable.enable tunable.tuning_enable tunable.record_untuned_enable "
                "tunable.set_max_tuning_duration tunable.get_max_tuning_duration "
                "tunable.set_max_tuning_iterations tunable.get_max_tuning_iterations "
                "tunable.set_filename tunable.get_filename tunable.get_results "
                "tunable.get_validators tunable.read_file tunable.tune_gemm_in_file "
                "tunable.mgpu_tune_gemm_in_file tunable.set_rotating_buffer_size "
                "tunable.get_rotating_buffer_size tunable.set_numerical_check_tolerances "
                "tunable.get_cublaslt_requested_algo_count "
                "tunable.set_cublaslt_requested_algo_count"
            ),
        }.items()
    }
)

# What a tensor says of devices, or takes: by what makes it speak of cuda.
TENSOR_WORDS = MappingProxyType(
    {
        **dict.fromkeys(
            ["device", "is_cuda", "cuda", "type", "__repr__"], "reports cuda instead of trn"
        ),
        **dict.fromkeys(
            "to new new_empty new_empty_strided new_full new_ones new_tensor new_zeros "
            "pin_memory is_pinned type_as record_stream".split(),
            "accepts cuda for trn",
        ),
        **dict.fromkeys(
            "storage untyped_storage storage_type is_shared share_memory_".split(),
            "through the storage, whose device reports cuda",
        ),
        **dict.fromkeys(["cpu", "get_device", "is_cpu"], "the same on every device"),
        "__dlpack_device__": "an extension device, not CUDA: the memory is on the host",
        **dict.fromkeys(
            "ipu is_ipu is_maia is_meta is_mps is_mtia is_vulkan is_xla is_xpu mtia xpu "
            "is_mkldnn".split(),
            "another device or format: False, or raises as on a GPU",
        ),
        **dict.fromkeys(["is_trn", "trn"], "the device's own name, unchanged"),
    }
)


def reason(name: str) -> str | None:
    """Why the name is refused; None if it is not."""
    return next((why for why, names in REFUSED.items() if name in names), None)


def rows() -> Iterator[tuple[str, str, str]]:
    """(name, "mapped", "kept" or "refused", how or why) for the documentation."""
    for name in SAME:
        yield name, "mapped", f"`torch.trn.{name}`"
    for name, how in SPECIAL.items():
        yield name, "mapped", how
    for name, how in KEPT.items():
        yield name, "kept", how
    for why, refused in REFUSED.items():
        for name in refused:
            yield name, "refused", why
