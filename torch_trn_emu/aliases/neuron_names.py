"""TorchNeuron's public names and variables, and what each is under `--as-neuron`.

Sources: Neuron SDK 2.33 documentation of TorchNeuron (open beta): about PyTorch on Neuron, the
torch.compile backend reference, environment variables, memory profiling guide, profiling PyTorch
with Neuron Explorer. tests/aliases/test_neuron_names.py walks the tables.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["REFUSED", "SERVED", "VARIABLES", "Variable", "reason"]

# By module: each name is there and does what the documentation says, as far as the device has it.
SERVED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "torch.neuron": tuple(
            """
            Event Stream StreamContext _sleep current_device current_stream default_stream device
            device_count empty_cache get_amp_supported_dtype get_device_name get_device_properties
            get_dynamo_metrics get_rng_state get_rng_state_all init initial_seed is_available
            is_bf16_supported is_initialized manual_seed manual_seed_all max_memory_allocated
            max_memory_reserved memory memory_allocated memory_reserved memory_snapshot
            memory_stats memory_summary query record_event reset_accumulated_memory_stats
            reset_dynamo_metrics reset_peak_memory_stats seed seed_all set_device set_rng_state
            set_rng_state_all set_stream stream synchronize wait_event wait_stream
            """.split()
        ),
        "torch_neuronx": tuple(
            """
            DataParallel Event NeuronProfiler Stream StreamContext async_load clear_op_tracking
            current_device current_stream default_stream device device_count dynamic_batch
            empty_cache get_device_properties get_dynamo_metrics get_executed_ops get_fallback_ops
            is_neuron_runtime_initialized lazy_load max_memory_allocated max_memory_reserved memory
            memory_allocated memory_reserved memory_snapshot memory_stats memory_summary neuron
            neuron_dynamo_backend profiling replace_weights reset_accumulated_memory_stats
            reset_dynamo_metrics reset_peak_memory_stats set_device set_stream stream streams
            synchronize trace
            """.split()
        ),
        "torch_neuronx.memory": tuple(
            """
            empty_cache max_memory_allocated max_memory_reserved memory_allocated memory_reserved
            memory_snapshot memory_stats memory_summary reset_accumulated_memory_stats
            reset_peak_memory_stats
            """.split()
        ),
        "torch_neuronx.streams": (
            "Event", "Stream", "StreamContext", "current_stream", "default_stream", "set_stream",
            "stream",
        ),
        "torch_neuronx.profiling": (
            "NRTProfilerError", "NeuronConfig", "NeuronProfiler", "ProfileMode",
        ),
        "torch_neuronx.neuron_dynamo_backend": tuple(
            """
            NEFFCompilationError NEFFExecutionError create_neuron_backend get_dynamo_metrics
            get_model_name get_rank neuron_backend reset_dynamo_metrics set_model_name
            """.split()
        ),
    }
)  # fmt: skip

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("torch_neuronx.nki", "torch_neuronx.nki_op", "torch_neuronx.wrap_nki"),
            "NKI kernels are not supported",
        ),
        "torch_neuronx.distributed": "use torch.distributed: its backends are neuron and xla",
        "torch_neuronx.python_ops": "the emulator has its own operators",
        "torch_neuronx.experimental": "it belongs to the XLA release; profiling is "
        "torch_neuronx.profiling",
        **dict.fromkeys(
            tuple(
                f"torch_neuronx.neuron_dynamo_backend.{name}"
                for name in (
                    "fx_to_mlir_string", "load_mlir", "save_fx_as_mlir", "save_mlir",
                    "save_fx_graph_all_formats", "save_fx_graph_txt",
                )
            ),
            "MLIR is not used; for dumps of graphs use the option dump or TRN_EMU_DUMP",
        ),
    }
)  # fmt: skip


class Variable(str):
    """What a documented variable does here; `honoured` unless it is accepted without effect."""

    honoured: bool

    def __new__(cls, text: str, *, honoured: bool = False) -> "Variable":
        made = super().__new__(cls, text)
        made.honoured = honoured
        return made


_CACHE = "there is no NEFF cache; compiled graphs are in torch's own caches"
_COLLECTIVE = "not part of the model of collectives"
VARIABLES: Mapping[str, Variable] = MappingProxyType(
    {
        "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": Variable(
            "1, the default: a graph that does not compile raises; 0: it runs eagerly, with a "
            "warning. The option fallback_execution overrides it",
            honoured=True,
        ),
        "TORCH_NEURONX_PRESERVE_COMPILATION_ARTIFACTS": Variable(
            "1: keep the dumps of each graph, in the emulator's format", honoured=True
        ),
        "TORCH_NEURONX_DEBUG_DIR": Variable("directory for these files", honoured=True),
        "TORCH_NEURONX_DYNAMO_DISABLE_CPU_AUTOCOPY": Variable(
            "1: compiled functions raise an error for CPU tensors", honoured=True
        ),
        "TORCH_NEURONX_ENABLED_METRIC_TABLES": Variable(
            "graph_stats: write that table at exit", honoured=True
        ),
        "TORCH_NEURONX_METRICS_DIR": Variable("directory for these files", honoured=True),
        "TORCH_NEURONX_RETAIN_DEVICE_MODE": Variable("results are always where torch expects them"),
        "TORCH_NEURONX_COMPLEX_DECOMPOSE": Variable("complex numbers are computed natively"),
        "TORCH_NEURONX_ENABLE_NKI_SDPA": Variable(
            "attention is priced by the emulator's own kernel"
        ),
        "TORCH_NEURONX_NEURONX_CC_TIMEOUT": Variable("the vendor's compiler is not used"),
        "TORCH_NEURONX_FALLBACK_ONLY_FOR_UNIMPLEMENTED_OPS": Variable(
            "no operator falls back to the host"
        ),
        "TORCH_NEURONX_MLIR_ATEN_OPS": Variable("the emulator has its own operators"),
        "TORCH_NEURONX_ENABLE_STACK_TRACE": Variable(
            "errors are always raised at the line that causes them"
        ),
        "TORCH_NEURONX_LOG_LEVEL": Variable("there are no logs; use TORCH_LOGS for Dynamo's logs"),
        "TORCH_NEURONX_ENABLE_ASYNC_NRT": Variable(
            "launches are always asynchronous in simulated time"
        ),
        "TORCH_NEURONX_DISABLE_NEFF_CACHE": Variable(_CACHE),
        "TORCH_NEURONX_NEFF_DISABLE_CACHE": Variable(_CACHE),
        "TORCH_NEURONX_NEFF_CACHE_DIR": Variable(_CACHE),
        "TORCH_NEURONX_NEFF_LOCAL_CACHE_DIR": Variable(_CACHE),
        "TORCH_NEURONX_ENABLE_HOST_CC": Variable(_COLLECTIVE),
        "NEURON_USE_SPLIT_ALLGATHER": Variable(_COLLECTIVE),
        "NEURON_USE_SPLIT_REDUCE_SCATTER": Variable(_COLLECTIVE),
        "COLLECTIVE_BUCKETSIZE_IN_MB": Variable(_COLLECTIVE),
        "COLLECTIVE_MIN_BUCKETS": Variable(_COLLECTIVE),
        "NEURON_LAUNCH_BLOCKING": Variable(
            "values are there and errors raised when an operator returns; simulated time goes "
            "on as with asynchronous launches"
        ),
    }
)


def reason(name: str) -> str | None:
    """Why the name is refused; None if it is not."""
    return REFUSED.get(name)
