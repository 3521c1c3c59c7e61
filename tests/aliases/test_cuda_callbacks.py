"""What torch runs of a script's own code hears cuda, and computes what it does on the CPU."""

from .test_cuda import run_as_cuda

START = """
import warnings
import torch
import torch.nn.functional as F
from torch import nn

warnings.simplefilter("ignore")  # torch's own, of its prototypes

def hear(tensor, device):
    assert tensor.device.type == device, (tensor.device, device)
    assert tensor.is_cuda == (device == "cuda")
    made = torch.ones((), device=device) + torch.tensor([1.0, 2.0], device=device).sum()
    return float(made + torch.tensor(1.0).to(device))

def compare(functions):
    for name, function in functions.items():
        on_cpu, on_cuda = (function(torch.arange(4.0, device=d), d) for d in ("cpu", "cuda"))
        for one, other in zip(on_cpu, on_cuda, strict=True):
            assert other.device.type == "cuda", name
            assert torch.equal(one, other.cpu()), (name, one, other)
"""

SUBCLASSES = """
import copy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.checkpoint import CheckpointPolicy

class Plain(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        made = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.sin:
            return made + hear(args[0].as_subclass(torch.Tensor), args[0].device.type)
        return made

class Duck:
    def __init__(self, tensor):
        self.tensor = tensor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        heard = hear(self.tensor, self.tensor.device.type)
        return func(*(a.tensor if isinstance(a, Duck) else a for a in args), **kwargs or {}) + heard

class OfClass(Duck):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return Duck.__torch_function__(args[0], func, types, args, kwargs)

class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, of):
        return torch.Tensor._make_wrapper_subclass(
            cls, of.shape, dtype=of.dtype, device=of.device, requires_grad=of.requires_grad
        )

    def __init__(self, of):
        self.of = of

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def inner(value):
            if isinstance(value, Wrapper):
                hear(value.of, value.device.type)
                return value.of
            return value

        made = func(*tree_map(inner, args), **tree_map(inner, kwargs or {}))
        return tree_map(lambda v: Wrapper(v) if isinstance(v, torch.Tensor) else v, made)

class Quiet(Wrapper):
    __torch_function__ = torch._C._disabled_torch_function_impl

class Modes:
    def handle(self, func, types, args=(), kwargs=None):
        for value in args:
            if isinstance(value, torch.Tensor):
                self.heard.append(hear(value, self.device))
        return func(*args, **kwargs or {})

    def __init__(self, device):
        super().__init__()
        self.heard, self.device = [], device

class Functions(Modes, TorchFunctionMode):
    __torch_function__ = Modes.handle

class Dispatch(Modes, TorchDispatchMode):
    __torch_dispatch__ = Modes.handle

def backward_of_wrapper(x, device):
    w = Wrapper(x.clone()).requires_grad_()
    (w.sin() * 2).sum().backward()
    return [w.grad.of]

def in_mode(kind):
    def run(x, device):
        y = x.clone().requires_grad_()
        with kind(device) as mode:
            z = torch.sin(y) + 1
        with kind(device):
            z.sum().backward()
        assert mode.heard
        return z.detach(), y.grad
    return run

def policy(x, device):
    y, heard = x.clone().requires_grad_(), []
    def choose(context, operator, *args, **kwargs):
        heard.append(hear(args[0], device))
        return CheckpointPolicy.PREFER_RECOMPUTE
    contexts = lambda: create_selective_checkpoint_contexts(choose)
    run = lambda t: (t.sin() * t).sum()
    checkpoint(run, y, use_reentrant=False, context_fn=contexts).backward()
    assert heard
    return [y.grad]

class Sub(torch.Tensor):
    # its functions that are written in Python call themselves again, past the subclass

    def __deepcopy__(self, memo):
        return self + hear(self.as_subclass(torch.Tensor), self.device.type)

def in_python(x, device):
    s = x.as_subclass(Sub)
    y = s.clone().requires_grad_()
    y.register_hook(lambda g: g * hear(g, device))
    (y.norm() + 1 / (y.sum() + len(y)) + sum(y)).backward()
    return [v.as_subclass(torch.Tensor) for v in (y.grad, copy.deepcopy(s), s.split(1)[0], *s)]

compare({
    "functions in Python": in_python,
    "function": lambda x, d: [torch.sin(x.as_subclass(Plain)).as_subclass(torch.Tensor)],
    "duck": lambda x, d: [torch.add(Duck(x), 1)],
    "duck by class": lambda x, d: [torch.add(OfClass(x), 1)],
    "dispatch": lambda x, d: [(torch.sin(Wrapper(x)) + 1).of],
    "dispatch of a list": lambda x, d: [torch.cat([Wrapper(x), Wrapper(x)]).of],
    "dispatch alone": lambda x, d: [torch.sin(Quiet(x)).of],
    "parameter": lambda x, d: [(nn.Parameter(Wrapper(x)) * 2).of.detach()],
    "backward": backward_of_wrapper,
    "function mode": in_mode(Functions),
    "dispatch mode": in_mode(Dispatch),
    "policy of a checkpoint": policy,
})
"""

OPERATORS = """
from torch.library import Library, custom_op, define, impl

count = iter(range(100))

def scaled(tensor):
    return tensor * hear(tensor, tensor.device.type)

def made(kernel=scaled, **given):
    name = f"callbacks::f{next(count)}"
    return custom_op(name, kernel, mutates_args=(), schema="(Tensor x) -> Tensor", **given)

def with_gradient(x, device):
    op = made()
    op.register_autograd(
        lambda ctx, g: g * hear(g, device) * ctx.heard,
        setup_context=lambda ctx, inputs, output: setattr(ctx, "heard", hear(output, device)),
    )
    y = x.clone().requires_grad_()
    op(y).sum().backward()
    return [y.grad]

def with_vmap(x, device):
    op = made()
    op.register_vmap(lambda info, dims, t: (scaled(t), dims[0]))
    return [torch.vmap(op)(x.reshape(2, 2))]

def with_kernel(x, device):
    op = made(lambda t: t * 0, device_types="meta")
    op.register_kernel(device)(scaled)
    return [op(x)]

def with_autocast(register, dtype):
    def run(x, device):
        op = made(lambda t: t * 2)
        register(op, device, dtype)
        with torch.autocast(device, dtype=torch.bfloat16):
            made_of = op(x)
        assert made_of.dtype == dtype
        return [made_of]
    return run

def without_kernel(x, device):
    op = made(lambda t: t * 0)
    op.register_kernel(device)(scaled)
    with op.set_kernel_enabled(device, False):
        return op(x), op(x + 1)

def made_on_device(x, device):
    name = f"callbacks::f{next(count)}"
    kernel = lambda device: torch.ones(2, device=device)
    op = custom_op(name, kernel, mutates_args=(), device_types=device,
                   schema="(Device device) -> Tensor")
    return op(device), op(torch.device(device, 0))

def with_impl_of_custom_op(x, device):
    def op(x: torch.Tensor) -> torch.Tensor: ...

    op.__name__ = f"f{next(count)}"
    torch._custom_ops.custom_op(name := f"callbacks::{op.__name__}")(op)
    for each in ("cpu", "cuda"):
        kernel = scaled if each == device else torch.neg
        torch._custom_ops.impl(name, device_types=each)(lambda x, kernel=kernel: kernel(x))
    return [getattr(torch.ops.callbacks, op.__name__)(x)]

def defined():
    name = f"callbacks::f{next(count)}"
    define(name, "(Tensor x) -> Tensor")
    return name, getattr(torch.ops.callbacks, name.partition("::")[2])

def with_impl(by):
    def run(x, device):
        name, op = defined()
        by(name, device)
        return op(x), op.default(x)
    return run

libraries = []

def by_library(name, device):
    libraries.append(Library("callbacks", "FRAGMENT"))
    libraries[-1].impl(name, scaled, device.upper())

def by_key_of_library(name, device):
    libraries.append(Library("callbacks", "IMPL", device.upper()))
    libraries[-1].impl(name, scaled)

class Function(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t):
        device = "cuda" if t.is_cuda else "cpu"
        return t + torch.ones(2, device=device) + (t.device.type == device)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.device = inputs[0].device

    @staticmethod
    def backward(ctx, g):
        return g * torch.tensor(3.0, device=ctx.device) * (2 if ctx.device == g.device else 1)

def transformed(x, device):
    x = x.reshape(2, 2)
    gradient = torch.func.grad(lambda t: Function.apply(t).sum())
    return torch.vmap(Function.apply)(x), gradient(x), torch.vmap(gradient)(x)

def triplet(x, device):
    distance = lambda a, b: (a - b).abs().sum(-1) * hear(a, device)
    rows = x[None], x[None] + 1, x[None] * 2
    return [F.triplet_margin_with_distance_loss(*rows, distance_function=distance)]

compare({
    "kernel": lambda x, d: [made()(x)],
    "gradient": with_gradient,
    "vmap": with_vmap,
    "kernel for a device": with_kernel,
    "autocast": with_autocast(lambda op, *given: op.register_autocast(*given), torch.float16),
    "autocast by name": with_autocast(
        lambda op, *given: torch.library.register_autocast(op._qualname, *given), torch.float16
    ),
    "kernel that is off": without_kernel,
    "kernel without tensors": made_on_device,
    "impl of torch._custom_ops": with_impl_of_custom_op,
    "impl": with_impl(lambda name, device: impl(name, device)(scaled)),
    "impl by key": with_impl(lambda name, device: impl(name, device.upper())(scaled)),
    "library": with_impl(by_library),
    "library of a key": with_impl(by_key_of_library),
    "composite": with_impl(lambda name, device: impl(name, "default")(scaled)),
    "transformed": transformed,
    "argument": triplet,
})
"""


HOOKS = """
from contextlib import contextmanager, nullcontext
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

def with_hooks_of_saved(backward):
    def run(x, device):
        # packed outside of an operator: with the mode on
        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                return grad * 2 + ctx.saved_tensors[0] + hear(grad, device)

        heard = []
        x = x.clone().requires_grad_()
        with saved_tensors_hooks(lambda t: heard.append(hear(t, device)) or t, lambda t: t):
            y = Doubled.apply(x).sin().sum()
        backward(y)
        assert len(heard) == 2, heard
        return (x.grad,)

    return run

@contextmanager
def default_device(device):
    before = torch.get_default_device()
    torch.set_default_device(device)
    yield
    torch.set_default_device(before)

def replaced_in_a_hook(x, device):
    with default_device(device):
        x = torch.arange(4.0, requires_grad=True)

        def scaled(grad):
            with default_device(device):
                return grad * torch.full((), 3.0)

        x.register_hook(scaled)
        x.sin().sum().backward()
    return (x.grad,)

def replaced_in_a_checkpoint(x, device):
    contexts = lambda: (nullcontext(), default_device(device))
    with default_device(device):
        x = torch.arange(4.0, requires_grad=True)
        y = checkpoint(lambda x: x.sin().cos(), x, context_fn=contexts, use_reentrant=False)
        y.sum().backward()
    return (x.grad,)

compare({
    "backward of a tensor": with_hooks_of_saved(lambda y: y.backward()),
    "backward": with_hooks_of_saved(torch.autograd.backward),
    "default device of a hook": replaced_in_a_hook,
    "default device of a checkpoint": replaced_in_a_checkpoint,
})
"""


def test_hooks_of_the_backward_pass(tmp_path):
    ran = run_as_cuda(tmp_path, START + HOOKS)
    assert ran.returncode == 0, ran.stderr


def test_subclasses_and_modes(tmp_path):
    ran = run_as_cuda(tmp_path, START + SUBCLASSES)
    assert ran.returncode == 0, ran.stderr


def test_operators_of_a_script(tmp_path):
    ran = run_as_cuda(tmp_path, START + OPERATORS)
    assert ran.returncode == 0, ran.stderr


COMPILED = """
from torch.library import custom_op

count = iter(range(100))

def made(fake=torch.empty_like):
    name = f"compiled::f{next(count)}"
    kernel = lambda x: x * hear(x, x.device.type)
    op = custom_op(name, kernel, mutates_args=(), schema="(Tensor x) -> Tensor")
    op.register_fake(fake)
    return op

def empty(x):
    device = "cuda" if x.is_cuda else "cpu"
    return torch.empty(x.shape if x.device.type == device else (1,), device=device)

def in_graph(op):
    return lambda x, device: [
        torch.compile(lambda t: op(t) + 1, backend=backend)(x)
        for backend in ("inductor", "aot_eager", "eager")
    ]

def gradient(x, device):
    op = made()
    op.register_autograd(lambda ctx, g: g * (2 + (g.is_cuda == (device == "cuda"))))
    y = x.clone().requires_grad_()
    torch.compile(lambda t: op(t) * 2)(y).sum().backward()
    return [y.grad]

class Plain(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result + 1 if func is torch.sin and result.is_cuda == on_cuda else result

def subclass(x, device):
    global on_cuda
    on_cuda = device == "cuda"
    torch._dynamo.reset()
    return [torch.compile(torch.sin)(x.as_subclass(Plain)).as_subclass(torch.Tensor)]

def hook(x, device):
    def twice(t):
        t = t * 2
        t.register_hook(lambda g: g * (2 + (g.is_cuda == (device == "cuda"))))
        return t.square()
    y = x.clone().requires_grad_()
    torch.compile(twice)(y).sum().backward()
    return [y.grad]

compare({
    "kernel": in_graph(made()),
    "fake": in_graph(made(empty)),
    "gradient": gradient,
    "subclass": subclass,
    "hook": hook,
})
"""


def test_code_in_compiled_graphs(tmp_path):
    ran = run_as_cuda(tmp_path, START + COMPILED)
    assert ran.returncode == 0, ran.stderr
