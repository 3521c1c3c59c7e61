"""`torch_neuronx.neuron_dynamo_backend`: the compiler's backend, its names and metrics."""

import csv
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from warnings import warn

import torch

from ...compiler import report
from ...errors import Unsupported
from ...settings import DEVICE_TYPE
from ..neuron_names import reason

__all__ = [
    "NEFFCompilationError",
    "NEFFExecutionError",
    "create_neuron_backend",
    "get_dynamo_metrics",
    "get_model_name",
    "get_rank",
    "neuron_backend",
    "reset_dynamo_metrics",
    "set_model_name",
]

_model_name = "model_default"


def __getattr__(name: str) -> Any:
    if (why := reason(f"torch_neuronx.neuron_dynamo_backend.{name}")) is not None:
        raise Unsupported(f"torch_neuronx.neuron_dynamo_backend.{name} is not provided: {why}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class NEFFCompilationError(RuntimeError):
    """That `except` may name it; compiling raises what went wrong itself."""


class NEFFExecutionError(RuntimeError):
    """Likewise."""


@dataclass(kw_only=True)
class NeuronCompilationMetrics:
    """One compiled graph. Times are the host's, in microseconds; compiling includes lowering."""

    graph_id: str
    graph_name: str = ""
    model_name: str = ""
    has_collectives: bool = False
    graph_node_count: int = 0
    timestamp: str = ""
    torch_neuronx_fx_passes_us: int = 0
    torch_neuronx_lower_us: int = 0
    torch_neuronx_compile_us: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the backend: the graphs from `first` on are of this model, until the next call."""

    first: int
    model_name: str
    timestamp: str
    us: int


_calls: list[_Call] = []
_forgotten = 0  # graphs before the last reset


def set_model_name(name: str) -> None:
    """Name what is compiled from now on, unless the option `model_name` does."""
    global _model_name
    _model_name = name


def get_model_name() -> str:
    return _model_name


def get_rank() -> int:
    """The process's number in a job of several, from RANK; 0 for one alone."""
    return int(os.environ.get("RANK", "0"))


def neuron_backend(
    gm: torch.fx.GraphModule,
    example_inputs: Any,
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What `torch.compile(backend="neuron")` calls: the backend "trn" with the vendor's options.

    Options of their own: `fallback_execution`, whether a graph that does not compile runs eagerly
    (with a warning) rather than raising, and `model_name`. Raises Unsupported for dynamic shapes
    that were asked for; warns of a mode other than "default", which has no effect.
    """
    from ...compiler.backend import trn
    from ...torch_private import dynamo

    given = dict(options or {})
    name = given.pop("model_name", _model_name)
    if given.pop("dynamic", False) or not dynamo.config.assume_static_by_default:
        raise Unsupported(
            'torch.compile(backend="neuron", dynamic=True): the vendor\'s compiler has no dynamic '
            "shapes. Leave dynamic out: a graph is compiled for each new shape."
        )
    if mode not in (None, "default"):
        warn(
            f"the neuron backend does not support mode={mode!r}: it compiles as mode='default'.",
            stacklevel=2,
        )
    _refuse_host_inputs(example_inputs)
    first, began = _compiled_count(), time.perf_counter_ns()
    stamp = time.strftime("%Y%m%d_%H%M%S")
    compiled = trn(gm, example_inputs, options=_own_options(given))
    took = (time.perf_counter_ns() - began) // 1000
    _calls.append(_Call(first, name, stamp, took))
    return compiled


def create_neuron_backend() -> Callable[..., Any]:
    """The backend's function, to be passed as `backend=`."""
    return neuron_backend


def _own_options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of the backend "trn"."""
    raises = os.environ.get("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION", "1") == "1"
    given.setdefault("strict", not given.pop("fallback_execution", not raises))
    if os.environ.get("TORCH_NEURONX_PRESERVE_COMPILATION_ARTIFACTS") == "1":
        folder = os.environ.get("TORCH_NEURONX_DEBUG_DIR", "/tmp/neuron_backend")
        given.setdefault("dump", folder)
    return given


def _refuse_host_inputs(example_inputs: Any) -> None:
    if os.environ.get("TORCH_NEURONX_DYNAMO_DISABLE_CPU_AUTOCOPY") != "1":
        return
    for index, value in enumerate(example_inputs):
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            raise RuntimeError(
                f"Input tensor at index {index} is on cpu device, and "
                f'TORCH_NEURONX_DYNAMO_DISABLE_CPU_AUTOCOPY=1: move it with .to("{DEVICE_TYPE}").'
            )


def _compiled() -> list[Any]:
    return [row for row in report() if row.status in ("compiled", "eager") and row.kind != "break"]


def _compiled_count() -> int:
    return len(_compiled())


def get_dynamo_metrics() -> list[NeuronCompilationMetrics]:
    """A row for each graph that was compiled since the start or `reset_dynamo_metrics`."""
    rows = []
    for index, record in enumerate(_compiled()):
        call = next((c for c in reversed(_calls) if c.first <= index), None)
        if index < _forgotten or call is None:
            continue
        rows.append(
            NeuronCompilationMetrics(
                graph_id=f"{record.name}_{index}".replace(" ", "_"),
                graph_name=f"{call.model_name}_{index}_{record.kind}",
                model_name=call.model_name,
                graph_node_count=record.nodes,
                timestamp=call.timestamp,
                torch_neuronx_compile_us=call.us,
            )
        )
    return rows


def reset_dynamo_metrics() -> None:
    """Forget the rows so far."""
    global _forgotten
    _forgotten = _compiled_count()


def write_metrics() -> None:
    """Write the tables that TORCH_NEURONX_ENABLED_METRIC_TABLES names, as the process ends."""
    if "graph_stats" not in os.environ.get("TORCH_NEURONX_ENABLED_METRIC_TABLES", "").split(","):
        return
    folder = Path(os.environ.get("TORCH_NEURONX_METRICS_DIR", "/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"metric_table_graph_stats_rank{get_rank()}.csv"
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(NeuronCompilationMetrics)]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(asdict(row) for row in get_dynamo_metrics())
