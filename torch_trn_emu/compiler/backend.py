"""The Dynamo backend `trn`, an entry point of torch: AOTAutograd, then host code for each graph.

Dynamo -> AOTAutograd -> `compile_graph` for each forward, backward and inference graph: the
precision policy goes in, the graph moves to the host, Inductor makes its code. Checked on torch
2.13.0.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ..host import host_name
from ..precision import current_precision
from ..settings import settings
from ..torch_private import TracingContext, dynamo
from ..torch_private.inductor import compile_fx, compile_fx_inner, functorch_config
from .apply_precision import apply_precision, multiply_attention, policy_of, to_twins
from .compiled_graph import EagerCode, TrnCode, placement_of
from .decompositions import decompositions, traced_whole
from .dump import write_dump
from .dynamic_sizes import SizedPrice, places_of
from .flex import mark_of, open_flex_attention
from .fuse_producers import fuse_producers
from .graph_launches import uncounted
from .graph_price import target_of_process
from .graphs import copy_of, graphs_of
from .move_to_host import device_of_graph, host_inputs, is_of_device, move_to_host
from .one_kernel_file import in_one_file
from .operand_roles import find_weights
from .options import Options, read_options
from .own_kernels import own_operators, to_own_kernels
from .own_passes import sums_kept
from .records import GraphRecord, fall_back, note, note_once
from .replaced import replacement
from .round_once import round_once
from .shapes_of_host import register_shapes
from .subgraphs import Launch, pieces_of, prepare, unpriced
from .tangent_layouts import layout_of_tangents
from .writes_in_place import separate_overlaps, versions_kept

__all__ = ["guard_on_prices", "trn"]

# Dynamo runs what sets random states, as it does for torch's own devices, instead of tracing it.
dynamo.run_untraced("torch_trn_emu.trn.random")
register_shapes()


def trn(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What `torch.compile(..., backend="trn")` calls with each graph that Dynamo captures."""
    chosen = read_options(mode, options)
    guard_on_prices(gm, example_inputs)
    if (other := replacement()) is not None:
        return other(gm, example_inputs)  # type: ignore[no-any-return]
    policy = current_precision()
    if settings().stochastic_rounding:
        note_once("fused code rounds to nearest: stochastic rounding applies to products only")
    eager = copy_of(gm)
    for part in graphs_of(gm):
        multiply_attention(part.graph, policy)
        open_flex_attention(part.graph)
        find_weights(part.graph)
    with (
        uncounted(),  # operators that torch tries while it compiles
        _cache_keys(gm, policy, chosen),
        functorch_config.patch(_aot_patches(chosen) | layout_of_tangents(gm)),
        sums_kept(),
        traced_whole(),
    ):
        try:
            return compile_fx(  # type: ignore[return-value]
                gm,
                example_inputs,
                inner_compile=partial(compile_graph, policy=policy, options=chosen),
                config_patches=dict(chosen.inductor),
                decompositions=decompositions(bool(chosen.inductor.get("fallback_random"))),
            )
        except Exception as error:
            if chosen.strict or _is_dynamos(error):
                raise
            fall_back("a graph of Dynamo", "all", len(gm.graph.nodes), _reason(error))
            return eager.forward


def compile_graph(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    policy: str,
    options: Options,
    **kwargs: Any,
) -> Any:
    """Inductor's `inner_compile` for one graph of AOTAutograd."""
    device = device_of_graph(gm, example_inputs)
    if device is None:
        return compile_fx_inner(gm, example_inputs, **kwargs)
    kind = "backward" if kwargs.get("is_backward") else "inference"
    kind = "forward" if kind == "inference" and not kwargs.get("is_inference") else kind
    name = f"graph {kwargs.get('graph_id', 0)} {kind}"
    nodes, eager = len(gm.graph.nodes), copy_of(gm)
    prepare(gm, **kwargs)
    priced, fused = _priced(gm, name, policy, options), 0
    try:
        placement = placement_of(gm, device)
        for part in graphs_of(gm):
            apply_precision(part.graph, policy)
            to_twins(part.graph)
            fused += fuse_producers(part.graph) if options.fuse_producers else 0
            round_once(part.graph)
            separate_overlaps(part.graph)
        inputs = host_inputs(example_inputs)
        for part in graphs_of(gm):
            to_own_kernels(part, device)
        move_to_host(gm)
        record = GraphRecord(name=name, kind=kind, status="compiled", nodes=nodes, fused=fused)
        with in_one_file(), versions_kept():
            code = TrnCode(compile_fx_inner(gm, inputs, **kwargs), placement, priced, record)
    except Exception as error:
        if options.strict or _is_dynamos(error):
            raise
        fall_back(name, kind, nodes, _reason(error))
        return EagerCode(eager)
    note(record)
    return code


def _priced(
    gm: GraphModule, name: str, policy: str, options: Options
) -> tuple[Launch, ...] | SizedPrice:
    """What the graph costs; with symbolic sizes, by those of a call, from a copy that is kept."""
    if not options.program:
        return ()
    price = partial(_price, name=name, policy=policy, dump=options.dump or settings().dump)
    places = places_of(gm)
    return SizedPrice(places, copy_of(gm), price) if places else price(gm)


def _price(
    gm: GraphModule, sizes: str = "", *, name: str, policy: str, dump: str
) -> tuple[Launch, ...]:
    """The graph's engine programs and what they cost; what has none is not modelled."""
    target, launches = target_of_process(), []
    try:
        for piece in pieces_of(f"{name} {sizes}".rstrip(), gm, policy, target):
            launches.append(piece.launch(target))
            if dump:
                write_dump(dump, piece.gm, piece.work, launches[-1].priced, target)
        return tuple(launches)
    except Exception as error:
        return (unpriced(name, gm, target, _reason(error)),)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _is_dynamos(error: Exception) -> bool:
    """Errors by which the layers above steer: to trace again, to skip a frame."""
    steers = isinstance(error, dynamo.TorchDynamoException)
    return steers and not isinstance(error, dynamo.BackendCompilerFailed)


# --- what holds around a compilation --------------------------------------------------------------


def _aot_patches(options: Options) -> dict[str, bool]:
    """Keep `TrnCode` whole in the AOTAutograd cache, which takes both passes at once.

    A hit compiles nothing, so there would be nothing to dump.
    """
    cached = functorch_config.enable_autograd_cache and not (options.dump or settings().dump)
    return {
        "enable_autograd_cache": cached,
        "bundled_autograd_cache": True,
        "force_non_lazy_backward_lowering": not dynamo.config.compiled_autograd,
    }


@cache
def _version() -> str:
    """Of the files that make prices: compiler, operators, kernels, chips, and the library."""
    package = Path(__file__).parent.parent
    files = sorted([*package.rglob("*.py"), *package.glob("*.so")])
    stats = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files if (stat := path.stat())]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _cache_keys(gm: GraphModule, policy: str, options: Options) -> Iterator[None]:
    """What else decides a graph's code goes into the keys of torch's caches."""
    process = settings()
    nodes = (n for part in graphs_of(gm) for n in part.graph.nodes)
    own = ((n.name, policy_of(n, policy), mark_of(n)) for n in nodes)
    marks = [mark for mark in own if mark[1] != policy or mark[2] is not None]
    chosen = (options.program, options.fuse_producers)
    place = (process.chip.name, process.lnc, host_name(), _rank())
    called = [name for part in graphs_of(gm) for name in own_operators(part)]
    ours = (*place, policy, *chosen, marks, called, _version())
    tag = f"trn {ours} {torch.compiler.config.cache_key_tag}"
    with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        yield


def _rank() -> tuple[int, int] | None:
    """The rank and how many there are: operators of a DTensor are traced for one shard of it."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def guard_on_prices(gm: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Make Dynamo trace again when the policy of the thread, or what prices `meta`, is another."""
    if TracingContext.try_get() is None:
        return
    dynamo.guard_on_call("torch_trn_emu", "_C", "current_policy")
    if is_of_device("meta", gm, example_inputs):
        dynamo.guard_on_call("torch_trn_emu", "compiler", "replaced", "replaced_for")
