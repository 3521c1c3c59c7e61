"""Differences that are no fault of trn: one row each, with its reason."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Known:
    cases: str  # a pattern over operator/format/aspect, sample, changes
    verdicts: tuple[str, ...]
    text: str
    says: str = ""  # a pattern over both errors


KNOWN = (
    Known(
        cases=r"^linalg\.lstsq",
        verdicts=("BOUND", "DIFFERS"),
        text="LAPACK in MKL depends on the alignment of its operands.",
    ),
    Known(
        cases=r"^(special\.)?(polygamma.*/|round\.decimals.*/float16/)",
        verdicts=("BOUND", "DIFFERS"),
        text="Computed in float32 and cast once: the host rounds between its steps.",
    ),
    Known(
        cases=r"^(_native_batch_norm_legit|native_batch_norm|_batch_norm_with_update)/.*/out",
        verdicts=("BOUND", "DIFFERS"),
        text="The host's kernel takes the statistics it writes for contiguous, and gives other"
        " numbers from call to call where they are not.",
    ),
    Known(
        cases=r"^(_native_batch_norm_legit|native_batch_norm|_batch_norm_with_update)/.*/out",
        verdicts=("ERROR_DIFFERS",),
        text="Into a strided result the host computes element by element, where longer statistics"
        " do not broadcast; trn as into a contiguous one, where they are read as far as needed.",
        says=r"^RuntimeError: The size of tensor a .* on the host, no error",
    ),
    Known(
        cases=r"^(_native_batch_norm_legit|native_batch_norm|_batch_norm_with_update)/.*/out",
        verdicts=("ERROR_DIFFERS",),
        text="Into a strided result, and for 16-bit inputs, the host asserts that weight and bias"
        " have one dimension; elsewhere it reads them as they lie in memory, as trn does.",
        says=r"^RuntimeError: t\.defined\(\) && t\.dim\(\) == 1 INTERNAL .* on the host, no error",
    ),
    Known(
        cases=r"^(torch\._scaled_mm|nn\.functional\.(avg_pool3d|gelu)|narrow_copy).*/out",
        verdicts=("BOUND", "DIFFERS"),
        text="The host takes a strided `out=` for contiguous, or computes it by another kernel.",
    ),
    Known(
        cases=r"^nn\.functional\.max_pool1d/",
        verdicts=("BOUND", "DIFFERS"),
        text="Without a gradient the host has a kernel of its own, which ignores a negative bit and"
        " gives a contiguous result; trn gives what max_pool2d gives.",
    ),
    Known(
        cases=r"^nn\.functional\.linear_cross_entropy.*/b?float16/",
        verdicts=("BOUND", "DIFFERS"),
        text="trn sums 16-bit formats in float32, the host in the format.",
    ),
    Known(
        cases=r"^nn\.functional\.linear_cross_entropy",
        verdicts=("ERROR_DIFFERS",),
        text="trn refuses weights of another format, which the host casts.",
        says="^no error on the host, RuntimeError: expected m1 and m2 to have the same dtype",
    ),
    Known(
        cases=r"^nn\.functional\.scaled_dot_product_attention/",
        verdicts=("ERROR_DIFFERS",),
        text="The host's fused kernel reads beyond fewer values than keys.",
        says="^no error on the host, RuntimeError: Expected size for first two dimensions of",
    ),
    Known(
        cases=r"^resize_",
        verdicts=("BOUND", "DIFFERS"),
        text="What grows holds whatever memory held before.",
    ),
    Known(
        cases=r"^(masked\.median|(nan)?median|native_group_norm)/.*(expanded|every second)",
        verdicts=("BOUND", "DIFFERS"),
        text="The host's kernel takes what it reads for contiguous, and reads beyond it.",
    ),
    Known(
        cases=r"^nn\.functional\.ctc_loss/.*negative bit",
        verdicts=("ERROR_DIFFERS",),
        text="The host reads lengths without looking at their negative bit.",
        says="input_lengths|target_lengths",
    ),
    Known(
        cases=r"",
        verdicts=("ERROR_DIFFERS",),
        text="trn refuses arguments with which the host's kernel reads beyond its operands, or"
        " leaves its result as memory was.",
        says=r"^(no error|.* not implemented for .*) on the host, \w+: (lu_unpack: LU_pivots"
        r"|(embedding_bag|segment_reduce): "
        r"|batch_norm: \w+ has|grid_sampler_[23]d: (interpolation|padding)_mode"
        r"|pdist: no gradient|pad: padding of|ctc_loss: targets|softmax backward: "
        r"|torch\.linalg\.eigvals: )",
    ),
    Known(
        cases=r"^ldexp/.*/backward",
        verdicts=("ERROR_DIFFERS",),
        text="The host has no power of complex32; trn has, and torch's gradient of ldexp refuses"
        " its formats then.",
        says=r"not implemented for 'ComplexHalf' on the host, \w+: Expected isFloatingType",
    ),
    Known(
        cases=r"^nn\.functional\.dropout/.*/backward",
        verdicts=("ERROR_DIFFERS",),
        text="Complex dropout has a gradient on neither side: trn has CUDA's operator.",
        says=r"not implemented for 'Complex.* on the host, RuntimeError: native_dropout does not",
    ),
    Known(
        cases=r"^torch\._scaled_mm",
        verdicts=("ERROR_DIFFERS",),
        text="The host takes any format and any shape where an operand is empty.",
        says="^no error on the host, ValueError: scaled_mm(?: takes float8|: .* do not multiply)",
    ),
    Known(
        cases=r"^torch\._scaled_mm",
        verdicts=("ERROR_DIFFERS",),
        text="Two faults: to say that formats do not fit, the host turns a second operand that is"
        " no matrix, which raises an error of its own.",
        says=r"^(RuntimeError: t\(\) expects|IndexError: Dimension out of range).* on the host,"
        " ValueError: scaled_mm takes float8",
    ),
    Known(
        cases=r"^torch\._scaled_mm",
        verdicts=("ERROR_DIFFERS",),
        text="The host does not look at the format of scales where an operand is empty, or only"
        " after the shapes; trn takes float32 and the scales of MX blocks, and says so first.",
        says=r"on the host, ValueError: scales are of dtypes ",
    ),
)


def known(case: Any, verdict: str, why: str) -> Known | None:
    rows = (
        row
        for row in KNOWN
        if verdict in row.verdicts and re.search(row.cases, str(case)) and re.search(row.says, why)
    )
    return next(rows, None)
