"""The compiled bindings, declared in csrc/bindings.cpp and the bind.cpp of each layer.

tests/test_bindings.py compares it with the library; mypy holds callers to the types. Times are
simulated nanoseconds, sizes bytes, devices indices of logical cores.
"""

from array import array
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Generator, Tensor

# The device

def configure(
    name: str, device_count: int, hbm_bytes: int, dispatch_ns: int, host: str = "cpu"
) -> None: ...
def set_missing_dtypes(chip: str, names: Sequence[str], /) -> None: ...
def register_accelerated(names: Sequence[str]) -> None: ...
def answer_to_cuda_profiler() -> None: ...
def set_graph_hooks(
    begin: Callable[[int], None],
    end: Callable[[int], None],
    replay: Callable[[int], None],
    reset: Callable[[int], None],
    dump: Callable[[int, str], None],
) -> None: ...
def limit_isa(level: int, /) -> None: ...
def isa() -> int: ...
def device_count() -> int: ...
def current_device() -> int: ...
def check_index(device: int, /) -> None: ...
def exchange_device(device: int, /) -> int: ...
def is_in_bad_fork() -> bool: ...
def register_fork_handler() -> None: ...
def default_generator(device: int, /) -> Generator: ...
def set_type_attribute(kind: type, name: str, value: object, /) -> None:
    """What Python reads as an attribute of a type of torch._C."""

def equate_devices_with_cuda() -> None:
    """In Python a device of trn equals, from now on, that of cuda with its index."""

def translate_constructor(
    kind: type,
    translate: Callable[
        [tuple[object, ...], dict[str, object] | None], tuple[tuple[object, ...], dict[str, object]]
    ],
    /,
) -> None: ...

# Memory

def hbm_in_use(device: int, /) -> bool: ...
def memory_stats(device: int, /) -> dict[str, int]: ...
def live_blocks(device: int, limit: int, /) -> list[tuple[int, int]]:
    """(bytes, allocations before it) of the largest blocks."""

def memory_segments(device: int, /) -> list[tuple[int, int, int, list[bool]]]:
    """(address, bytes, bytes of a block, whether each block is live)."""

def memory_limit(device: int, /) -> int: ...
def set_memory_limit(device: int, nbytes: int, /) -> None: ...
def reset_peak(device: int, /) -> None: ...
def reset_accumulated(device: int, /) -> None: ...
def empty_cache() -> None: ...
def assume_host_memory(nbytes: int | None, /) -> None: ...

# Launches and the simulated clock

def launches(device: int, /) -> list[tuple[str, str, int, int, int]]:
    """(operator, signature, launches, ns of one, row of its price)."""

def pause_ledger(paused: bool, /) -> bool: ...
def list_launches(listing: bool, /) -> list[tuple[str, int, int]]:
    """(operator, ns, row of its price) of what was listed so far."""

def core_times(device: int, /) -> tuple[int, int, int]:
    """Dispatch, busy and idle ns."""

def set_pricer(price: Callable[[str, str, str, int], tuple[int, int, bool, bool]], /) -> None:
    """price(operator, arguments, results, policy) -> (ns, row, free, whether the host waits)."""

def reset_launches(device: int, /) -> None: ...
def synchronize(device: int, /) -> None: ...
def host_ns(device: int, /) -> int: ...

# Recording

Row = tuple[int, ...]

def start_recording(sites: bool, limit: int) -> None: ...
def stop_recording() -> tuple[
    list[tuple[str, str, int, int]], list[Row], list[Row], list[Row], int
]:
    """Signatures, launches, scopes, blocks of memory, and how many launches were left out."""

def enter_scope(scope: int, phase: int, /) -> None: ...
def leave_scope() -> None: ...
def mark_blocks(blocks: Sequence[int], kind: int, /) -> None: ...
def find_sites_outside(folders: Sequence[str], /) -> None: ...
def sites() -> list[tuple[str, int, str]]:
    """(file, line, function) by number."""

# The precision policy

def policy_names() -> list[str]: ...
def operand_format_names() -> list[str]: ...
def operand_formats(policy: int, matmul_class: int, weight: int, /) -> tuple[int, int]: ...
def current_policy() -> int: ...
def set_process_policy(policy: int, /) -> None: ...
def exchange_thread_policy(policy: int, /) -> int: ...
def set_stochastic_rounding(enabled: bool, seed: int) -> None: ...
def restart_rounding(seed: int) -> None: ...
def role_of(a: Tensor, b: Tensor, /) -> tuple[int, int]:
    """The class of their product, and which of them is the weight: 0, 1 or -1."""

def is_weight(tensor: Tensor, /) -> bool: ...
def clear_casts_of_meta() -> None:
    """Drop the casts of weights that autocast keeps in an estimate."""

# Compiled graphs

class LaunchRow: ...

class HostGraph:
    def __init__(
        self,
        device: int,
        written: Sequence[bool],
        result_devices: Sequence[int],
        returned_inputs: Sequence[int],
        draws: bool,
    ) -> None: ...
    def run(
        self,
        host_code: Callable[[list[Any]], Sequence[Any]],
        inputs: list[Any],
        row: LaunchRow | None = None,
    ) -> list[Any]: ...
    def run_scheduled(
        self,
        host_code: Callable[[list[Any]], Sequence[Any]],
        inputs: list[Any],
        steps: Sequence[LaunchRow | int | None],
    ) -> list[Any]: ...

def host_alias(tensor: Tensor, /) -> Tensor: ...
def collect_list_passes(on: bool) -> None: ...
def list_passes_kept() -> int: ...
def weight_copies() -> tuple[int, int, int]: ...
def add_graph_row(
    device: int,
    name: str,
    signature: str,
    key: int,
    device_ns: int,
    dispatch_ns: int,
    price_row: int,
    blocks: bool,
) -> LaunchRow: ...
def launch_graph(device: int, row: LaunchRow, times: int) -> None: ...

# The scheduler

def schedule(
    code: array[int], extrapolate: bool = True, trace_limit: int = 0
) -> tuple[
    int, list[tuple[int, int, int, int]], list[int], int, int, int, list[tuple[int, int, int]]
]:
    """In picoseconds: total, (count, busy, wait, span) of each instruction, busy time of each DMA
    engine and of HBM, table loads, instructions simulated, (instruction, start, end) of the first.
    """

def schedule_lanes(
    code: array[int], limit: int
) -> list[list[tuple[int, bool, int, int, int, int]]]:
    """(instruction, alike, start, end, busy, count) of the spans of each queue."""

def decode_program(code: array[int]) -> object: ...
def schedule_graph(
    programs: list[object], words: array[int], extrapolate: bool = True, lane_limit: int = 0
) -> tuple[
    int,
    list[tuple[int, int, int]],
    list[tuple[int, list[tuple[int, int, int, int]], list[int], int, int, int]],
    list[list[list[tuple[int, bool, int, int, int, int]]]],
]:
    """In picoseconds: total, (start, end, added) of each part, for each program (parts,
    instructions, DMA engines, HBM, table loads, simulated) as `schedule`, spans by part and queue.
    """

# Collectives

def set_transport(name: str, /) -> None: ...
def set_backend_name(name: str, /) -> None: ...
def set_collective_pricer(price: Callable[[str, int, list[int], bool], tuple[int, int]], /) -> None:
    """price(operation, bytes, ranks) -> (ns, row)."""

def set_gloo_maker(make: Callable[..., Any], /) -> None: ...
def end_groups(reason: str, /) -> None: ...
def collective_rows(device: int, /) -> list[tuple[int, int, int, int]]:
    """(row, count, active ns, exposed ns)."""

def start_collective_log(device: int, limit: int) -> None: ...
def stop_collective_log(
    device: int, /
) -> list[tuple[int, str, int, str, list[int], int, int, int, int]]:
    """(row, group, number, what, arrivals, own arrival, start, end, exposed), times in ns."""

def bind_backend(into: ModuleType, /) -> None: ...
