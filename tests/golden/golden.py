"""Prices frozen in a file: what a change of lowering, engines or timing does to each of them.

    python golden.py record [FILE]             write the prices of this tree
    python golden.py compare [FILE]            price this tree again and list what differs
    python golden.py compare FILE --with FILE  two recordings

A recording has a line for each distinct call that PyTorch's operator samples make on trn (forward
and backward), with status, nanoseconds and a digest of all counters for trn2 and trn3 and one and
two cores, and one for each graph of `GRAPHS` and each calibration row. `explained.txt` beside this
file holds regular expressions of lines that may differ, each with its reason; `compare` fails on
any other difference. Record anew, and empty that file, once differences are explained.
"""

import argparse
import hashlib
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "conformance"), str(HERE.parents[1] / "benchmarks")]

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import torch_trn_emu  # noqa: E402
from torch_trn_emu.calls import Call, Target, TensorArg  # noqa: E402
from torch_trn_emu.chip import get_chip  # noqa: E402
from torch_trn_emu.ops import OPS  # noqa: E402
from torch_trn_emu.pricing import price_call  # noqa: E402

FROZEN = HERE / "prices.txt.xz"
EXPLAINED = HERE / "explained.txt"
TARGETS = tuple(Target(get_chip(chip), cores) for chip in ("trn2", "trn3") for cores in (1, 2))
SAMPLES = 6  # of a case; the first ones are the plainest
CALLS = 12  # of an overload
Lines = dict[str, str]


# --- calls ---------------------------------------------------------------------------------------


class _Calls(TorchDispatchMode):
    """Collects the operator calls on trn tensors, described as the runtime does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Call] = {}
        self.count: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rest = func._schema.arguments[len(args) :]
        given = (*args, *(kwargs.get(a.name, a.default_value) for a in rest))
        described = _described(given)
        result = func(*args, **kwargs)
        made = result if isinstance(result, (tuple, list)) else (result,)
        name = f"{func._schema.name}.{func._schema.overload_name}".removesuffix(".")
        call = Call(name, described, _described(made), torch_trn_emu.current_precision())
        if _is_priced(call):
            self.count[call.op] = self.count.get(call.op, 0) + (_key(call) not in self.seen)
            if self.count[call.op] <= CALLS:
                self.seen.setdefault(_key(call), call)
        return result


def _is_priced(call: Call) -> bool:
    """Whether a core computes it: not metadata, not a copy from or to the host."""
    row = OPS.get(call.name)
    tensors = (*call.tensors, *call.outputs)
    moves = any(t.on_host and t.shape for t in tensors)
    return bool(tensors) and not moves and (row is None or row.status != "free")


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and not value.is_nested
        dtype = str(value.dtype).removeprefix("torch.") if plain else "sparse"
        shape = tuple(value.shape) if not value.is_nested else ()
        strides = tuple(value.stride()) if plain else ()
        return TensorArg(dtype, shape, strides, value.device.type != "trn")
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    return value


def _text(value: Any) -> str:
    if isinstance(value, TensorArg):
        where = "@host" if value.on_host else ""
        sizes = "x".join(map(str, value.shape)) or "()"
        lies = "" if value.contiguous else "/" + ",".join(map(str, value.strides))
        return f"{value.torch_dtype}[{sizes}{lies}]{where}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return str(value)


def _key(call: Call) -> str:
    text = f"{call.op}{_text(call.arguments)} -> {_text(call.results)} {call.policy}"
    return re.sub(r"\s+", " ", text)


def calls() -> dict[str, Call]:
    """The distinct calls of the samples, by their text."""
    import cases

    collected = _Calls()
    for name in ("op", "foreach", "optim"):
        suite, chosen = cases.SUITES[name], {}
        for case in suite.cases():
            if case.aspect in ("forward", "backward", "fused") and "complex" not in case.dtype:
                chosen.setdefault((case.name, case.aspect), case)
        for case in chosen.values():
            _collect(suite, case, collected)
    return collected.seen


def _collect(suite: Any, case: Any, collected: _Calls) -> None:
    try:
        for k, trial in enumerate(suite.trials(case)):
            if k == SAMPLES:
                return
            torch.manual_seed(1)
            try:
                with collected:
                    trial("trn")
            except Exception:  # conformance tests say which samples raise, and why
                continue
    except Exception as error:
        print(f"{case}: no samples: {error}", file=sys.stderr)


# --- prices --------------------------------------------------------------------------------------


def _priced(call: Call, target: Target) -> str:
    price = price_call(call, target)
    counters = ",".join(f"{k}={v:.9g}" for k, v in sorted(price.totals.items()) if v)
    digest = hashlib.blake2b(counters.encode(), digest_size=4).hexdigest()
    return f"{price.status} {price.seconds * 1e9:.3f} {digest}"


def _graphs() -> Iterator[tuple[str, str]]:
    """The graphs that are compared with eager operators, forward and backward."""
    sys.path.insert(0, str(HERE.parent / "compiler"))
    import test_against_eager as models

    for chip in ("trn2", "trn3"):
        for name, (function, shape) in models.CASES.items():
            x = torch.empty(shape, device="meta", requires_grad=True)

            def step(x: torch.Tensor, function: Any = function) -> None:
                result = function(x)
                result.backward(torch.empty_like(result))

            torch._dynamo.reset()
            found = torch_trn_emu.estimate(step, x, mode="compile", chip=chip)
            parts = " ".join(f"{r.status} {r.device_s * 1e9:.3f}" for r in found.ops)
            yield f"graph {name} {chip}", f"{found.device_us:.6f} {parts}"


def _calibration() -> Iterator[tuple[str, str]]:
    import accuracy

    for row in accuracy.rows():
        yield f"calibration {row.id} {row.what}", f"{row.predicted:.9g}"


def record() -> Lines:
    lines = dict(_calibration())
    lines.update(_graphs())
    for key, call in calls().items():
        lines[key] = " | ".join(_priced(call, target) for target in TARGETS)
    return lines


def read(path: Path) -> Lines:
    rows = lzma.decompress(path.read_bytes()).decode().splitlines()
    return dict(row.split("\t", 1) for row in rows)  # type: ignore[misc]


def write(path: Path, lines: Lines) -> None:
    text = "".join(f"{key}\t{value}\n" for key, value in sorted(lines.items()))
    path.write_bytes(lzma.compress(text.encode(), preset=9))


# --- differences ---------------------------------------------------------------------------------


def explained() -> list[tuple[re.Pattern[str], str]]:
    """Patterns of lines that may differ, and why: `pattern  # reason`."""
    rows = EXPLAINED.read_text().splitlines() if EXPLAINED.exists() else []
    pairs = (row.split("  # ", 1) for row in rows if row and not row.startswith("#"))
    return [(re.compile(pattern), reason) for pattern, reason in pairs]


def differences(before: Lines, after: Lines) -> Iterator[tuple[str, str, str]]:
    for key in sorted(before.keys() & after.keys()):
        if before[key] != after[key]:
            yield key, before[key], after[key]


ALONE = "what two cores both did whole is priced as one core's"


def _is_alone(old: str, new: str) -> bool:
    """Whether only prices for two cores differ, and are now those for one core."""
    old_parts, new_parts = old.split(" | "), new.split(" | ")
    if not len(old_parts) == len(new_parts) == len(TARGETS):
        return False
    ones = [k for k, target in enumerate(TARGETS) if target.cores == 1]
    return all(
        new_parts[k] == old_parts[k] and new_parts[k + 1] in (old_parts[k + 1], new_parts[k])
        for k in ones
    )


def compare(before: Lines, after: Lines) -> int:
    """Prints what differs; the number of differences that nothing explains."""
    reasons: dict[str, int] = {}
    patterns = explained()
    unexplained = 0
    for key, old, new in differences(before, after):
        why = next((reason for pattern, reason in patterns if pattern.search(key)), None)
        why = why or (ALONE if _is_alone(old, new) else None)
        if why is None:
            unexplained += 1
            print(f"{key}\n  - {old}\n  + {new}")
        else:
            reasons[why] = reasons.get(why, 0) + 1
    for why, count in reasons.items():
        print(f"{count} explained: {why}")
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    print(f"{len(before)} lines, {unexplained} unexplained differences, "
          f"{len(gone)} calls no longer made, {len(new)} new ones")  # fmt: skip
    return unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", nargs="?", type=Path, default=FROZEN)
    parser.add_argument("--with", dest="other", type=Path, help="a recording, not this tree")
    asked = parser.parse_args()
    if asked.action == "record":
        write(asked.file, record())
        return 0
    return min(1, compare(read(asked.file), read(asked.other) if asked.other else record()))


if __name__ == "__main__":
    sys.exit(main())
