"""Graphs as one schedule: bounds, counters, equality with one joined program, repeated layers."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.graph_price import price_graph as price_whole
from torch_trn_emu.compiler.graph_price import windows_of as windows_of_work
from torch_trn_emu.compiler.subgraphs import Piece, pieces_of
from torch_trn_emu.compiler.windows import Window, schedule_window
from torch_trn_emu.counters import COUNTERS, combine, fold
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.errors import UndefinedOnChip
from torch_trn_emu.isa import Builder, Engine, Memory, Program, Role, tile, validate
from torch_trn_emu.isa.join import Part, join
from torch_trn_emu.timing import price
from torch_trn_emu.timing.graph import price_graph, repeats_of
from torch_trn_emu.timing.price import unrolled

aten = torch.ops.aten
TARGETS = [
    Target(get_chip(chip), cores)
    for chip, cores in (("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2))
]


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def mlp(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return x + torch.nn.functional.gelu(norm(x, g) @ w) @ v


def layers(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    for k in range(0, len(weights), 3):
        x = mlp(x, *weights[k : k + 3])
    return x


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    y, _ = flash(q, k, v)
    return y.transpose(1, 2).reshape(q.shape[0] * q.shape[2], -1) @ w


def decode(x: torch.Tensor, cache: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Reads a cache, writes its last row in place, and goes on."""
    y = norm(x, w[0]) @ w
    scores = torch.softmax(y @ cache.t(), -1)
    cache[-1:].copy_(y)
    return (scores @ cache) @ v


def embedded(x: torch.Tensor, table: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    rows = table[x.abs().long().clamp(0, 7)[:, 0]]
    return torch.cumsum(torch.sort(rows @ w, -1)[0], -1)


def pictures(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    y = torch.relu(torch.conv2d(x, w, stride=2, padding=1))
    return torch.max_pool2d(y, 2).flatten(1) @ v


MLP = [(64, 96), (96, 160), (160, 96), (96,)]
CASES: dict[str, tuple[Callable[..., torch.Tensor], Sequence[tuple[int, ...]]]] = {
    "mlp": (mlp, MLP),
    "large mlp": (mlp, [(1024, 512), (512, 2048), (2048, 512), (512,)]),
    "one row": (mlp, [(1, 512), (512, 1024), (1024, 512), (512,)]),
    "two layers": (layers, [*MLP, *MLP[1:]]),
    "attention": (attention, [(2, 2, 64, 32)] * 3 + [(64, 96)]),
    "decode": (decode, [(1, 128), (64, 128), (128, 128), (128, 256)]),
    "embedded": (embedded, [(16, 4), (8, 64), (64, 96)]),
    "pictures": (pictures, [(2, 3, 16, 16), (8, 3, 3, 3), (128, 10)]),
}


def piece_of(name: str, target: Target, policy: str = "bf16") -> Piece:
    function, shapes = CASES[name]
    inputs = [torch.empty(shape) for shape in shapes]
    gm = make_fx(torch.func.functionalize(function, remove="mutations"), tracing_mode="fake")(
        *inputs
    )
    [piece] = pieces_of(name, gm, policy, target)
    return piece


def windows_of(name: str, target: Target) -> list[Window]:
    return [w for w in windows_of_work(piece_of(name, target).work, target) if not w.priced]


NOT_ADDED = {  # times, what is one for all programs, and tables that are loaded already
    *(c.name for c in COUNTERS.values() if c.unit.value in ("s", "cycles")),
    "activation_table_load_count",
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.chip.name}-{t.cores}")
@pytest.mark.parametrize("name", CASES)
def test_a_graph_takes_between_its_engines_and_its_regions(name: str, target: Target) -> None:
    for window in windows_of(name, target):
        parts = [p.part() for p in window.parts]
        run = price_graph(parts, target.chip, window.ordered)
        alone = [price(p.program, target.chip) for p in parts]
        overhead = target.chip.launch.kernel_overhead_s
        # Each waits for a semaphore of those before; the sum of the times leaves that out.
        waits = (len(parts) - 1) * target.chip.launch.semaphore_latency_s
        assert run.exec_s <= sum(one.total_s - overhead for one in alone) + waits + 1e-15
        assert run.exec_s >= max(run.engine_busy_s(engine) for engine in Engine)
        assert sum(t.added_s for t in run.parts) == pytest.approx(run.exec_s)
        assert all(0 <= t.start_s <= t.end_s <= run.exec_s + 1e-15 for t in run.parts)
        whole = schedule_window(window, target).price.totals
        added = combine((fold(one), 1) for one in alone)
        for counter in added.keys() - NOT_ADDED:
            assert whole[counter] == pytest.approx(added[counter]), counter


@pytest.mark.parametrize("target", [TARGETS[0], TARGETS[-1]], ids=lambda t: t.chip.name)
@pytest.mark.parametrize("name", CASES)
def test_parts_take_as_long_as_one_joined_program(name: str, target: Target) -> None:
    for window in windows_of(name, target):
        program = window.program(target)
        validate(program, target.chip)
        run = price_graph([p.part() for p in window.parts], target.chip, window.ordered)
        joined = price(program, target.chip, extrapolate=False)
        overhead = target.chip.launch.kernel_overhead_s
        assert run.exec_s == pytest.approx(joined.total_s - overhead, abs=1e-15)
        if joined.simulated_instructions < 4000:
            twin = price(program, target.chip, scheduler=unrolled)
            assert twin.total_s == joined.total_s
        for counter in ("hbm_read_bytes", "hbm_write_bytes", "event_count", "hardware_flops"):
            assert fold(joined)[counter] == pytest.approx(sum(fold(r)[counter] for r in run.runs))


@pytest.mark.parametrize("name", ["mlp", "one row", "two layers"])
def test_the_joined_program_computes_the_graph(name: str) -> None:
    target = TARGETS[0]
    function, shapes = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) / 8 for shape in shapes]
    piece = piece_of(name, target, "fp32")
    [window] = windows_of_work(piece.work, target)
    names = [n.name for n in piece.gm.graph.find_nodes(op="placeholder")]
    program = window.program(target)
    known = {b.name: b for b in program.buffers}
    given = {n: t.reshape(known[n].shape).numpy() for n, t in zip(names, inputs, strict=True)}
    made = Machine(target.chip).run(program, given)
    [result] = [y for n, y in made.items() if n.startswith("add")]
    expected = function(*inputs)
    torch.testing.assert_close(torch.as_tensor(result).view_as(expected), expected)


def test_regions_say_when_they_ran() -> None:
    target = TARGETS[-1]
    piece = piece_of("two layers", target)
    whole = price_whole("layers", piece.work, target)
    overhead = target.chip.launch.kernel_overhead_s
    assert sum(r.added_s for r in whole.regions) == pytest.approx(whole.price.seconds - overhead)
    assert all(r.start_s < r.end_s for r in whole.regions)
    begun = [r.start_s for r in whole.regions]
    ended = [r.end_s for r in whole.regions]
    assert any(b < e for b, e in zip(begun[1:], ended, strict=False))  # a later one loads before


# --- tensors --------------------------------------------------------------------------------------


def _copy(rows: int, *, into: str = "y") -> Program:
    """Tiles of x through SBUF into another tensor."""
    b = Builder("copy")
    x = b.hbm("x", (rows, 64), "float32", Role.INPUT)
    y = b.hbm(into, (rows, 64), "float32", Role.OUTPUT)
    t = b.sbuf("t", 64, "float32")
    for start, size in b.tiles(rows, 128):
        b.fresh(t)
        b.load(tile(t, (0, 0), (size, 64)), tile(x, (start, 0), (size, 64)))
        b.store(tile(y, (start, 0), (size, 64)), tile(t, (0, 0), (size, 64)))
    return b.build()


TRN2 = TARGETS[1].chip


def _seconds(parts: list[Part], *ordered: str) -> float:
    run = price_graph(parts, TRN2, frozenset(ordered))
    joined = price(join("parts", parts, TRN2, frozenset(ordered)), TRN2)
    assert run.exec_s == pytest.approx(joined.total_s - TRN2.launch.kernel_overhead_s, abs=1e-15)
    return run.exec_s


def test_who_reads_waits_for_who_writes() -> None:
    one = _copy(128)

    def seconds(second: Part) -> float:
        return _seconds([Part(program=one, tensors={"x": "a", "y": "b"}), second])

    after = seconds(Part(program=one, tensors={"x": "b", "y": "c"}))
    apart = seconds(Part(program=one, tensors={"x": "d", "y": "c"}))
    fenced = seconds(Part(program=one, tensors={"y": "c"}, reads=("b", "d")))
    assert after == fenced > apart
    first = Part(program=one, tensors={"x": "a"}, makes=("b",))
    second = Part(program=one, tensors={"x": "b", "y": "c"})
    assert _seconds([first, second]) == after


def test_a_tensor_written_in_place_waits_for_its_readers() -> None:
    long, short = _copy(128 * 16), _copy(128)
    reads = Part(program=long, tensors={"x": "cache", "y": "b"})
    writes = Part(program=short, tensors={"x": "new", "y": "cache"})
    again = Part(program=short, tensors={"x": "cache", "y": "c"})
    assert _seconds([reads, writes, again], "cache") > _seconds([reads, writes, again])


def test_an_updated_cache_is_known_to_be_written_in_place() -> None:
    found = [w.ordered for w in windows_of("decode", TARGETS[0])]
    assert found == [frozenset({"cache_1"})]


def test_the_machine_finds_a_late_read() -> None:
    """Memory that a later part takes holds nothing for an earlier one any more."""
    parts = [Part(program=_copy(128), tensors={"x": "a", "y": "b"})] * 2
    program = join("two", parts, TRN2, frozenset())
    x = torch.arange(128.0 * 64).reshape(128, 64).numpy()
    assert (Machine(TRN2).run(program, {"a": x})["b"] == x).all()
    small = [b for b in program.buffers if b.memory is Memory.SBUF]
    assert [b.address for b in small] == [0, 256]
    wide = Builder("wide")
    wide.sbuf("t", TRN2.sbuf.usable_bytes_per_partition // 4, "float32")
    many = join("many", [*parts, Part(program=wide.build(), tensors={})], TRN2, frozenset())
    late = [n for n in many.instructions() if n.queue == "1.store y"]
    broken = Program(name="late", buffers=many.buffers, body=(*many.body, *late))
    with pytest.raises(UndefinedOnChip, match="nothing was written"):
        Machine(TRN2).run(broken, {"a": x})


# --- layers ---------------------------------------------------------------------------------------


@dataclass
class Chain:
    """Layers of three copies, each of what the one before made; all also read one tensor."""

    layers: int

    def parts(self) -> list[Part]:
        small, large = _copy(128), _copy(512)
        out = [Part(program=small, tensors={"x": "given", "y": "mask"})]
        for k in range(self.layers):
            out += [
                Part(program=large, tensors={"x": f"x{k}", "y": f"y{k}"}),
                Part(program=small, tensors={"x": "mask", "y": f"m{k}"}),
                Part(program=small, tensors={"y": f"x{k + 1}"}, reads=(f"y{k}", f"m{k}")),
            ]
        last = f"x{self.layers}"
        return [*out, Part(program=small, tensors={"x": last, "y": "result"})]


def test_equal_layers_are_scheduled_once() -> None:
    parts = Chain(40).parts()
    short, whole = (price_graph(parts, TRN2, frozenset(), extrapolate=e) for e in (True, False))
    assert short.exec_s == pytest.approx(whole.exec_s, rel=1e-3)
    counts = [sum(r.simulated_instructions for r in run.runs) for run in (short, whole)]
    assert counts[0] < counts[1] / 5
    for a, b in zip(short.runs, whole.runs, strict=True):
        assert a.programs == b.programs
        assert [r.count for r in a.retired] == [r.count for r in b.retired]
    assert sum(t.added_s for t in short.parts) == pytest.approx(short.exec_s)


def test_repeats_are_found_where_tensors_lie_alike() -> None:
    def rows(*programs: int) -> list[tuple[int, list[tuple[int, int, int]]]]:
        """Each part reads what the one before made."""
        return [(p, [(0, k, 1), (1, k + 1, 3)]) for k, p in enumerate(programs)]

    assert repeats_of(rows(7, *[1, 2, 2, 3] * 8, 9)) == [(1, 4, 8)]
    assert repeats_of(rows(*[1, 2, 3] * 4)) == []  # too few
    assert repeats_of(rows(*range(30))) == []
    skipping = rows(*[1, 2, 3] * 20)
    skipping[30] = (1, [(0, 28, 1), (1, 31, 3)])  # one reads from further back
    assert [count for _, _, count in repeats_of(skipping)] == [9, 9]


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_repeats_share_no_parts(period: int) -> None:
    """From one layer on a part reads from far away, or one part differs: repeats on either side."""
    for k, differs in itertools.product(range(6 * period, 9 * period), (False, True)):
        programs = [*range(period)] * 20
        reads = list(range(len(programs)))
        if differs:
            programs[k] = 99
        else:
            reads[k::period] = [1] * len(reads[k::period])
        rows = [
            (program, [(0, read, 1), (1, n + 1, 3)])
            for n, (program, read) in enumerate(zip(programs, reads, strict=True))
        ]
        end = 0
        for start, length, count in repeats_of(rows):
            assert end <= start
            end = start + length * count
            assert end <= len(rows)
            assert programs[start:end] == programs[start : start + length] * count
        assert end > k


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_graph_without_a_program_is_not_modelled_and_says_so(monkeypatch) -> None:
    import torch_trn_emu
    from torch_trn_emu.compiler import UnpricedGraphWarning, estimate, reset

    def fails(*given: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(estimate, "launches_of", fails)
    x = torch.empty(64, 64, device="meta")
    reset()
    with pytest.warns(UnpricedGraphWarning, match="KeyError: 'no such thing'"):
        priced = torch_trn_emu.estimate(lambda x: x.erfinv() + 2, x, chip="trn1", mode="compile")
    [row] = priced.ops
    assert row.status == "not modelled"
    assert "no such thing" in row.note
    assert priced.device_us > 2 * 64 * 64 * 4 / 16e9 * 1e6
    assert priced.counters["total_time"] > 0
