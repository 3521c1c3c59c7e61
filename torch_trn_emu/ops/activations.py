"""Steps of activation functions that take numbers, and of their gradients: a reader for each.

Operands are those of the schema in order; of a gradient, first what comes from above.
"""

from collections.abc import Callable, Sequence
from math import inf
from types import MappingProxyType

from ..calls import Call, TensorArg
from ..kernels.pointwise import Step, activation, constant, select, tensor_scalar, tensor_tensor
from .attributes import Reader

__all__ = ["ACTIVATIONS"]

LINEAR = 17.0  # where log(1 + exp(x)) is x in float32
T, S, A = tensor_tensor, tensor_scalar, activation
Steps = list[Step]
_LARGEST = MappingProxyType({"bfloat16": 3.3895313892515355e38, "float16": 65504.0})


def _number(call: Call, at: int, default: float = 0.0) -> float:
    return float(call.argument(at, default))


def _exponential_unit(call: Call, alpha: float, scale: float, stretch: float) -> Steps:
    """Scale x above 0, and alpha scale (exp(stretch x) - 1) below."""
    below = S(-1, op0="add", imm0=-1.0, op1="multiply", imm1=alpha * scale)
    above = [A("relu"), S(-1, op0="multiply", imm0=scale)]
    return [S(0, op0="min", imm0=0.0), A("exp", -1, scale=stretch), below, *above, T("add", -1, -3)]


def _elu(call: Call) -> Steps:
    return _exponential_unit(call, *(_number(call, k, 1.0) for k in (1, 2, 3)))


def _celu(call: Call) -> Steps:
    alpha = _number(call, 1, 1.0)
    return _exponential_unit(call, alpha, 1.0, 1 / alpha)


def _elu_backward(call: Call) -> Steps:
    alpha, scale, stretch = (_number(call, k, 1.0) for k in (1, 2, 3))
    if call.argument(4, False):  # from the result, which holds the exponential
        below = [S(1, op0="add", imm0=alpha * scale, op1="multiply", imm1=stretch)]
    else:
        factor = S(-1, op0="multiply", imm0=alpha * scale * stretch)
        below = [S(1, op0="min", imm0=0.0), A("exp", -1, scale=stretch), factor]
    choice = [S(1, op0="greater", imm0=0.0), constant(scale), select(-2, -1, -3)]
    return [*below, *choice, T("multiply", 0, -1)]


def _leaky_relu(call: Call) -> Steps:
    slope = _number(call, 1, 0.01)
    return [S(0, op0="multiply", imm0=slope), T("max" if slope <= 1 else "min", 0, -1)]


def _leaky_relu_backward(call: Call) -> Steps:
    slope = _number(call, 2, 0.01)
    factor = S(-1, op0="multiply", imm0=1 - slope, op1="add", imm1=slope)
    return [S(1, op0="greater", imm0=0.0), factor, T("multiply", 0, -1)]


def _prelu(call: Call) -> Steps:
    below = [S(0, op0="min", imm0=0.0), T("multiply", -1, 1)]
    return [S(0, op0="max", imm0=0.0), *below, T("add", -1, -3)]


def _hardtanh(call: Call) -> Steps:
    return [S(0, op0="max", imm0=_number(call, 1, -1), op1="min", imm1=_number(call, 2, 1))]


def _hardtanh_backward(call: Call) -> Steps:
    inside = [S(1, op0="greater", imm0=_number(call, 2)), S(1, op0="less", imm0=_number(call, 3))]
    return [*inside, T("multiply", -1, -2), T("multiply", 0, -1)]


def _threshold(call: Call) -> Steps:
    return [S(0, op0="greater", imm0=_number(call, 1)), constant(_number(call, 2)),
            select(-2, 0, -1)]  # fmt: skip


def _threshold_backward(call: Call) -> Steps:
    return [S(1, op0="greater", imm0=_number(call, 2)), T("multiply", 0, -1)]


def _softplus(call: Call) -> Steps:
    """Beyond the threshold it is x, as it is to float32's last bit from `LINEAR` on."""
    beta, most = _number(call, 1, 1.0), _number(call, 2, 20.0)
    steps = [A("softplus", 0, scale=beta)]
    if beta != 1:
        steps.append(S(-1, op0="multiply", imm0=1 / beta))
    if most >= LINEAR:
        return steps
    return [*steps, S(0, op0="multiply", imm0=beta, op1="greater", imm1=most), select(-1, 0, -2)]


def _softplus_backward(call: Call) -> Steps:
    beta, most = _number(call, 2, 1.0), _number(call, 3, 20.0)
    steps = [A("sigmoid", 1, scale=beta), T("multiply", 0, -1)]
    if most >= LINEAR:
        return steps
    return [*steps, S(1, op0="multiply", imm0=beta, op1="greater", imm1=most), select(-1, 0, -2)]


def _softshrink(call: Call) -> Steps:
    most = _number(call, 1, 0.5)
    return [S(0, op0="max", imm0=-most, op1="min", imm1=most), T("subtract", 0, -1)]


def _hardshrink(call: Call) -> Steps:
    return [A("abs"), S(-1, op0="greater", imm0=_number(call, 1, 0.5)), T("multiply", 0, -1)]


def _shrink_backward(call: Call) -> Steps:
    return [A("abs", 1), S(-1, op0="greater", imm0=_number(call, 2)), T("multiply", 0, -1)]


def _mish_backward(call: Call) -> Steps:
    """Grad (t + x sigmoid(x) (1 - t^2)), t = tanh(softplus(x))"""
    return [
        A("softplus", 1), A("tanh", -1), A("square", -1),
        S(-1, op0="multiply", imm0=-1.0, op1="add", imm1=1.0), A("silu", 1), T("multiply", -1, -2),
        T("add", -1, -5), T("multiply", 0, -1),
    ]  # fmt: skip


def _logit(call: Call) -> Steps:
    """log(x) - log(1 - x), x first cut to eps .. 1 - eps."""
    eps = call.argument(1)
    cut = S(0, op0="max", imm0=eps or 0.0, op1="min", imm1=1 - (eps or 0.0))
    complement = S(-2, op0="multiply", imm0=-1.0, op1="add", imm1=1.0)
    return [cut, A("log", -1), complement, A("log", -1), T("subtract", -3, -1)]


def _logit_backward(call: Call) -> Steps:
    """Grad / (x (1 - x)), and 0 outside of eps .. 1 - eps."""
    eps = call.argument(2)
    complement = S(1, op0="multiply", imm0=-1.0, op1="add", imm1=1.0)
    steps = [complement, T("multiply", 1, -1), A("reciprocal", -1), T("multiply", 0, -1)]
    if eps is None:
        return steps
    inside = [S(1, op0="greater_equal", imm0=eps), S(1, op0="less_equal", imm0=1 - eps)]
    return [*inside, T("multiply", -1, -2), *steps, constant(0.0), select(-6, -2, -1)]


def _nan_to_num(call: Call) -> Steps:
    most = _LARGEST.get(call.out.dtype, 3.4028234663852886e38)
    steps = [T("equal", 0, 0), constant(_number(call, 1)), select(-2, 0, -1)]
    for at, infinite, default in ((2, inf, most), (3, -inf, -most)):
        put = constant(_number(call, at, default))
        steps += [S(-1, op0="equal", imm0=infinite), put, select(-2, -1, -3)]
    return steps


def _reader(steps: Callable[[Call], Steps], tensors: int) -> Reader:
    """None where numbers of the call are tensors."""

    def read(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
        return steps(call) if len(operands) == tensors else None

    return read


ACTIVATIONS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "elu": _reader(_elu, 1),
        "elu_backward": _reader(_elu_backward, 2),
        "celu": _reader(_celu, 1),
        "leaky_relu": _reader(_leaky_relu, 1),
        "leaky_relu_backward": _reader(_leaky_relu_backward, 2),
        "_prelu_kernel": _reader(_prelu, 2),
        "hardtanh": _reader(_hardtanh, 1),
        "hardtanh_backward": _reader(_hardtanh_backward, 2),
        "threshold": _reader(_threshold, 1),
        "threshold_backward": _reader(_threshold_backward, 2),
        "softplus": _reader(_softplus, 1),
        "softplus_backward": _reader(_softplus_backward, 2),
        "softshrink": _reader(_softshrink, 1),
        "softshrink_backward": _reader(_shrink_backward, 2),
        "hardshrink": _reader(_hardshrink, 1),
        "hardshrink_backward": _reader(_shrink_backward, 2),
        "mish_backward": _reader(_mish_backward, 2),
        "logit": _reader(_logit, 1),
        "logit_backward": _reader(_logit_backward, 2),
        "nan_to_num": _reader(_nan_to_num, 1),
    }
)
