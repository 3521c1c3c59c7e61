"""Operators of other libraries, and those in formats that the host lacks, in compiled graphs.

They run the kernel that they run in eager mode.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from comparing import TORCHS_OWN
from torch import Tensor
from torch.library import custom_op

import torch_trn_emu
from torch_trn_emu.compiler.own_kernels import OwnKernel

pytestmark = TORCHS_OWN
HEARD = {"cpu": 3.0, "trn": 5.0}


@pytest.fixture(autouse=True)
def in_float32():
    with torch_trn_emu.precision("fp32"):
        yield


@custom_op("own::hears", mutates_args=())
def hears(x: Tensor) -> Tensor:
    return x * HEARD[x.device.type] + x.device.index


@custom_op("own::two", mutates_args=(), device_types="cpu")
def two(x: Tensor) -> Tensor:
    return x * 3


@two.register_kernel("trn")
def _(x: Tensor) -> Tensor:
    return x * 5


@custom_op("own::of_host", mutates_args=(), device_types="cpu")
def of_host(x: Tensor) -> Tensor:
    return x * 7


@custom_op("own::writes", mutates_args=("out",))
def writes(x: Tensor, out: Tensor) -> None:
    out.copy_(x * HEARD[out.device.type])


@custom_op("own::many", mutates_args=())
def many(
    xs: Sequence[Tensor], at: Tensor, given: Tensor | None, scale: float, name: str
) -> list[Tensor]:
    assert at.device.type == "cpu"
    assert all(x.device.type == name for x in xs)
    return [x * scale + at if given is None else x + given for x in xs]


@custom_op("own::draws", mutates_args=())
def draws(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@custom_op("own::made", mutates_args=())
def made(x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    there = torch.ones(3, device=device)
    return x * HEARD[there.device.type], there * 2


for operator in (hears, two, of_host, draws):
    operator.register_fake(lambda x: torch.empty_like(x))
many.register_fake(lambda xs, at, given, scale, name: [torch.empty_like(x) for x in xs])
made.register_fake(lambda x, device: (torch.empty_like(x), torch.empty(3, device=device)))
hears.register_autograd(lambda ctx, g: hears(g))


def written(x):
    out = torch.zeros_like(x)
    writes(x + 1, out)
    return out * 2


def in_a_branch(x):
    return torch.cond(x.sum() > 0, lambda x: two(x) + 1, lambda x: two(x) - 1, (x,))


FUNCTIONS = {
    "heard": lambda x: hears(x + 1) * 2,
    "two kernels": lambda x: two(x) + 1,
    "two kernels of an intermediate": lambda x: two(x.sin()).cos(),
    "of the host alone": lambda x: of_host(x) + 1,
    "twice": lambda x: two(two(x)) + hears(x),
    "written": written,
    "many": lambda x: many([x, x + 1], torch.tensor(2.0), None, 0.5, "trn"),
    "many with another": lambda x: many([x, x.exp()], torch.tensor(2.0), x * 2, 0.5, "trn"),
    "a device": lambda x: made(x + 1, x.device),
    "a branch": in_a_branch,
    "random": lambda x: draws(x) * 2,
}
LAYOUTS = {
    "contiguous": lambda: torch.arange(12.0).view(3, 4) / 7,
    "transposed": lambda: (torch.arange(12.0).view(4, 3) / 7).t(),
    "part": lambda: (torch.arange(48.0).view(6, 8) / 7)[1::2, ::2],
    "expanded": lambda: (torch.arange(4.0) / 7).expand(3, 4),
    "empty": lambda: torch.empty(0, 4),
}


def compiled(function, **given):
    return torch.compile(function, backend="trn", fullgraph=True, options={"strict": True}, **given)


def both(function, *arguments):
    """Results in eager mode and of compiled code, from the same seed."""
    found = []
    for call in (function, compiled(function)):
        torch.manual_seed(0)
        made = call(*arguments)
        found.append(made if isinstance(made, tuple | list) else [made])
    return found


CASES = [(name, "contiguous") for name in FUNCTIONS] + [
    (name, layout) for name in ("heard", "written") for layout in LAYOUTS if layout != "contiguous"
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_results_are_those_of_eager_mode(name, layout):
    x = LAYOUTS[layout]().to("trn")
    if layout == "expanded":
        x = x[:1].expand(3, 4)
    for eager, other in zip(*both(FUNCTIONS[name], x), strict=True):
        assert other.device == eager.device
        torch.testing.assert_close(other, eager, rtol=1e-6, atol=1e-6)


def test_gradients_run_on_trn():
    function, grads = FUNCTIONS["heard"], []
    for call in (function, compiled(function)):
        x = torch.arange(4.0, device="trn", requires_grad=True)
        call(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert grads[0].tolist() == [10.0] * 4


def test_the_core_is_that_of_the_graph():
    x = torch.ones(3, device="trn:1")
    ((eager,), (other,)) = both(hears, x)
    assert eager.tolist() == other.tolist() == [6.0] * 3
    assert other.device == x.device


def test_shapes_may_be_dynamic():
    call = compiled(FUNCTIONS["twice"], dynamic=True)
    for n in (2, 5, 9):
        x = torch.ones(n, 3, device="trn")
        assert torch.equal(call(x), FUNCTIONS["twice"](x))


def test_names_tell_operators_apart():
    kernels = [
        OwnKernel("own::two.default", device, moved)
        for device in (0, 1)
        for moved in (None, (True,), (True, False))
    ]
    assert len({kernel.name for kernel in kernels}) == len(kernels)


TARGET = torch.tensor([[1, 2, -1, 0, 0, 0], [3, -1, 5, 4, 0, 0], [0, 1, 2, 3, 4, 5]])


def in_formats_that_the_host_lacks(x: Tensor) -> tuple[Tensor, ...]:
    image, target = x.view(1, 1, 3, 6), TARGET.to(x.device)
    resized = (
        F.interpolate(image, size=(2, 4), mode=mode, antialias=True)
        for mode in ("bilinear", "bicubic")
    )
    losses = F.multi_margin_loss(x, target[:, 0]), F.multilabel_margin_loss(x, target)
    pooled = F.avg_pool3d(x.view(1, 1, 3, 3, 2), 2, padding=1)
    if x.dtype == torch.bfloat16:
        return (*resized, *losses, pooled)
    numbers = torch.view_as_complex(x.view(3, 3, 2))
    return (*resized, *losses, pooled, torch.view_as_real(numbers.exp() + numbers.sin()))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_formats_that_the_host_lacks(dtype):
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).to(dtype).trn()
    made = []
    for f in (
        in_formats_that_the_host_lacks,
        torch.compile(in_formats_that_the_host_lacks, fullgraph=True),
    ):
        leaf = x.clone().requires_grad_()
        results = f(leaf)
        total = torch.stack([result.float().sum() for result in results]).sum()
        made.append((*results, *torch.autograd.grad(total, leaf)))
    for eager, compiled in zip(*made, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2)


def test_targets_after_the_first_without_a_label_count_nothing():
    """A loss that PyTorch's decomposition has wrong: it counts them."""
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    losses = torch.compile(
        lambda x, t: [F.multilabel_margin_loss(x, t, reduction=r) for r in ("none", "sum", "mean")]
    )(x.trn(), TARGET.trn())
    for loss, reduction in zip(losses, ("none", "sum", "mean"), strict=True):
        expected = F.multilabel_margin_loss(x, TARGET, reduction=reduction)
        torch.testing.assert_close(loss.cpu(), expected)


SCRIPT = """
import sys
import torch
from torch.library import custom_op

@custom_op("own::two", mutates_args=(), device_types="cpu")
def two(x: torch.Tensor) -> torch.Tensor:
    return x * 3

factor = int(sys.argv[1])
if factor != 3:
    two.register_kernel("trn")(lambda x: x * factor)
two.register_fake(lambda x: torch.empty_like(x))
y = torch.compile(lambda x: two(x) + 1, fullgraph=True)(torch.ones(3, device="trn"))
assert y.tolist() == [factor + 1.0] * 3, y
"""


def test_graphs_of_the_cache_call_the_kernels_that_there_are(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for factor in ("3", "5", "3"):  # the last from the cache
        command = [sys.executable, str(script), factor]
        ran = subprocess.run(command, capture_output=True, text=True, env=env)
        assert ran.returncode == 0, ran.stderr
