"""Why a case may differ from the host: one row each, for docs/conformance.md and the tests."""

import re
from dataclasses import dataclass

import torch
from places import Bound


@dataclass(frozen=True, kw_only=True)
class Reason:
    cases: str  # a pattern over suite/name/dtype/aspect
    text: str
    bound: Bound = None  # None: one rounding of the format
    beyond: bool = False  # results may leave the bound
    refused: bool = False  # it may raise, or run without a compiled graph
    each: bool = True  # its cases are listed one by one
    wide: torch.dtype | None = None  # the bound: twice what the host is off results in this


CHUNKS = (
    "torch has a table of devices for the chunks of linear_cross_entropy. trn, which is not in it, "
    "gets larger ones: float32 sums in another order, then rounded."
)
RECURRENT = (
    "The CPU computes a layer of LSTM with oneDNN. On accelerators a fused cell adds the biases of "
    "an LSTM, and those of cells. Sums are taken in another order, and 16-bit formats are rounded "
    "more often. The bound of 16-bit results is measured sample by sample: one rounding, and twice "
    "what the host itself is off float32, as a share of the tensor's largest."
)

REASONS = (
    Reason(
        cases=r"^op/linalg\.lstsq",
        text="LAPACK in MKL depends on the alignment of its operands: the host itself gives "
        "these results, from one call to the next.",
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked_none/.*/backward$",
        text="Without a reduction, the gradient of chunked linear_cross_entropy is a Python formula"
        " of torch that sums in the input's format on devices outside its table.",
        beyond=True,
    ),
    Reason(
        cases=r"^module/nn\.LinearCrossEntropyLoss/(bfloat16|float16)/",
        text="As linear_cross_entropy.chunked and, without a reduction, chunked_none.",
        beyond=True,
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked.*/(bfloat16|float32)/",
        text=CHUNKS,
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked.*/float16/",
        text=CHUNKS,
        bound=(1e-3, 2**-12, 0),
    ),
    Reason(
        cases=r"^wider/(nansum|nanmean)/.*/backward$",
        text="The host's twin gives zeros of another sign where NaN was masked out.",
    ),
    Reason(
        cases=r"^wider/nanmean/complex32/out$",
        text="With `out=` the sum is rounded to the format before it is divided.",
        bound=(2**-9, 1e-5, 2**-9),
    ),
    Reason(
        cases=r"^wider/torch\.ops\.aten\._(flash|efficient)_attention_forward/",
        text="Sums are taken in another order than by the definition.",
        bound=(2**-8, 2**-8, 2**-8),
    ),
    Reason(
        cases=r"^wider/(polygamma.*|logaddexp|pow)/.*/backward$",
        text="The gradient is a formula of results in the format, which overflow, as on CUDA.",
        beyond=True,
    ),
    Reason(
        cases=r"^wider/.*/(complex32|float16)/backward$",
        text="The gradient is a formula of several operators, each of which rounds its result once,"
        " as on CUDA.",
        bound=(2**-8, 1e-4, 2**-8),
        each=False,
    ),
    Reason(
        cases=r"^op/(nn\.functional\.avg_pool3d|nn\.functional\.gelu|narrow_copy)/.*/out$",
        text="The host takes a strided `out=` for contiguous and writes to the wrong elements; trn "
        "writes where it is told.",
        beyond=True,
    ),
    Reason(
        cases=r"^op/(native_batch_norm|_native_batch_norm_legit|_batch_norm_with_update)/.*/out$",
        text="Into strided `out=` the host takes another kernel than without, with sums in another "
        "order; trn gives what both give without.",
        beyond=True,
    ),
    Reason(
        cases=r"^module/nn\.(AvgPool3d|LPPool3d|LocalResponseNorm|MultiLabelMarginLoss|MultiMarginLoss)"
        r"/(bfloat16|float16)/",
        text="The host has no kernel for this format; trn computes it wider, as CUDA takes it.",
        refused=True,
    ),
    Reason(cases=r"^module/nn\.(RNN|LSTM|GRU)(Cell)?/float32/", text=RECURRENT),
    Reason(
        cases=r"^module/nn\.(RNN|LSTM|GRU)(Cell)?/(bfloat16|float16)/",
        text=RECURRENT,
        wide=torch.float32,
    ),
)


COMPILED_REASONS = (
    Reason(
        cases=r"^compiled_op/(allclose|argwhere|bincount|broadcast_shapes|combinations|corrcoef|cov|equal"
        r"|geqrf|index_fill|item|linalg\.lstsq[a-z._]*|masked_select|narrow|nn\.functional\.ctc_loss"
        r"|nn\.functional\.gaussian_nll_loss|nn\.functional\.linear_cross_entropy\.chunked[a-z_]*"
        r"|nonzero|repeat_interleave|resize_|resize_as_|sparse\.[a-z._]*|tensor_split|to_sparse"
        r"|unique[a-z_]*)/|^compiled_foreach/_foreach_(max|mm)/",
        text="Dynamo makes no graph of it: no tensor comes out, the result's size depends on data,"
        " or torch asks for a break there.",
        refused=True,
    ),
    Reason(
        cases=r"^compiled_optim/.*/fused$|^compiled_optim/(Adafactor|LBFGS|SparseAdam)/",
        text="torch does not trace fused optimizers, nor those that read values of tensors: the"
        " step runs eagerly.",
        refused=True,
    ),
    Reason(
        cases=r"^compiled_optim/.*/differentiable$|^compiled_foreach/_foreach_zero/.*/backward$",
        text="Both refuse to change a leaf in place; Dynamo says it by an error of its own.",
        refused=True,
    ),
    Reason(
        cases=r"^compiled_op/linalg\.eig/",
        text="Complex numbers have no engine program; the graph runs and its price is a note.",
        refused=True,
    ),
    Reason(
        cases=r"^compiled_op/(nn\.functional\.rrelu/|normal/bfloat16/)",
        text="Random numbers: the decomposition draws them by another operator, or in float32.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_op/nn\.functional\.max_unpool2d",
        text="The values are equal; Inductor lays the result out in another order.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_op/(pinverse|linalg\.pinv\.(singular|hermitian))/float32/",
        text="The gradient of an ill-conditioned inverse multiplies the last bit of its operands.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_op/(grid_sampler_2d|linalg\.matrix_norm)/bfloat16/",
        text="Fused code keeps float32: a coordinate lies on the other side of a pixel, a number no"
        " longer equals its rounded minimum, with or without trn.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_optim/Muon/",
        text="Five products of rounded operands in a row: a sum in another order moves an operand"
        " to the next number of MXFP8.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_op/nn\.functional\.avg_pool2d/.*/backward$",
        text="Inductor has no code for this gradient on the CPU, with or without trn; without"
        " `strict` it runs eagerly.",
        refused=True,
    ),
    Reason(
        cases=r"^compiled_op/_?(native_)?(layer|batch)_norm(_legit|_with_update)?/bfloat16/",
        text="Mean and deviation, as results of their own, are float32 in Inductor's decomposition,"
        " as on GPUs.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_op/(fmod|remainder|div\..*|floor_divide|logspace.*)/bfloat16/",
        text="A quotient or an exponent that eager rounds to 16 bits lies on the other side of an"
        " integer, or is a power's argument.",
        beyond=True,
    ),
    Reason(
        cases=r"^compiled_.*/bfloat16/",
        text="Fused code keeps float32 between operators; eager rounds each result.",
        bound=(1.6e-2, 1e-5, 2**-6),
        each=False,
    ),
    Reason(
        cases=r"^compiled_",
        text="Sums are taken in another order, functions are another vector library's.",
        bound=(1.3e-6, 1e-5, 2**-20),
        each=False,
    ),
)


def reason_for(case: str) -> Reason | None:
    """The first row that covers the case."""
    rows = (*REASONS, *COMPILED_REASONS)
    return next((row for row in rows if re.search(row.cases, case)), None)
