"""Number formats, MX formats, scale rules and policies: the rows of formats.def.

Limits follow from bits.

Sources
  [ieee] IEEE 754-2019 section 3
  [mx]   OCP Microscaling formats v1.0
"""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

__all__ = [
    "ELEMENTS",
    "FORMATS",
    "MX_FORMATS",
    "POLICIES",
    "SCALE_RULES",
    "Element",
    "FloatFormat",
    "MxFormat",
    "Policy",
    "ScaleRule",
    "Specials",
]


class Specials(Enum):
    """Which codes are not numbers."""

    IEEE = "the top exponent holds inf and NaN"
    FN = "finite: all ones is NaN, there is no inf"
    NONE = "every code is a number"
    INTEGER = "two's complement: every code is a number, evenly spaced"
    SCALE = "powers of two only: no sign, no zero, all ones is NaN"


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format of sign, exponent and mantissa.

    An INTEGER is one with an exponent of one bit, whose subnormals and normals are evenly spaced;
    its codes are two's complement.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: Specials

    @property
    def signed(self) -> bool:
        return self.specials is not Specials.SCALE

    @property
    def bits(self) -> int:
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def storage_bytes(self) -> float:
        """Bytes an element takes: tfloat32 four, float6 a whole byte, float4 packs two a byte."""
        return {19: 4.0, 6: 1.0, 4: 0.5}.get(self.bits, self.bits / 8)

    @property
    def has_specials(self) -> bool:
        """Whether some codes are not numbers."""
        return self.specials not in (Specials.NONE, Specials.INTEGER)

    @property
    def bias(self) -> int:
        return int(2 ** (self.exponent_bits - 1)) - (0 if self.specials is Specials.INTEGER else 1)

    @property
    def max_code(self) -> int:
        """The code of the largest finite value, sign bit clear."""
        magnitudes: int = 2 ** (self.exponent_bits + self.mantissa_bits)
        if self.specials is Specials.IEEE:
            return magnitudes - int(2**self.mantissa_bits) - 1
        return magnitudes - (2 if self.has_specials else 1)

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal value. A scale format has no subnormals."""
        return (0 if self.specials is Specials.SCALE else 1) - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest finite value."""
        return (self.max_code >> self.mantissa_bits) - self.bias

    @property
    def max(self) -> float:
        mantissa = self.max_code & (2**self.mantissa_bits - 1)
        return float((1 + mantissa / 2**self.mantissa_bits) * 2.0**self.emax)

    @property
    def min_normal(self) -> float:
        return float(2.0**self.emin)

    @property
    def min_subnormal(self) -> float:
        return float(2.0 ** (self.emin - self.mantissa_bits))

    @property
    def eps(self) -> float:
        """Distance from 1 to the next value."""
        return float(2.0**-self.mantissa_bits)

    @property
    def nan_code(self) -> int | None:
        """The NaN that encoding gives: quiet, sign clear. None where the format has none."""
        if not self.has_specials:
            return None
        if self.specials is Specials.IEEE:
            quiet = 1 << (self.mantissa_bits - 1)
            return int(2**self.exponent_bits - 1) << self.mantissa_bits | quiet
        return int(2 ** (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def inf_code(self) -> int | None:
        return self.max_code + 1 if self.specials is Specials.IEEE else None


@dataclass(frozen=True, slots=True)
class Element:
    """An element of MX blocks, and the dtype of torch that holds its codes."""

    format: FloatFormat
    codes_dtype: str  # as c10::ScalarType names it

    @property
    def named_by_dtype(self) -> bool:
        """Whether the dtype of codes tells the element: a byte holds several formats."""
        return self.codes_dtype != "Byte"


@dataclass(frozen=True, slots=True, kw_only=True)
class MxFormat:
    """Blocks of `block_size` elements, each times one float8_e8m0fnu scale."""

    name: str
    element: FloatFormat
    block_size: int = 32

    @property
    def bits_per_element(self) -> float:
        return self.element.bits + FORMATS["float8_e8m0fnu"].bits / self.block_size

    @property
    def label(self) -> str:
        """As texts say it: "MXFP8 E4M3", "MXINT8"."""
        family = self.name.split("_")[0].upper()
        e = self.element
        if e.specials is Specials.INTEGER:
            return family
        return f"{family} E{e.exponent_bits}M{e.mantissa_bits}"


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """What a block's scale is made from: formats.def says what each column means."""

    name: str
    of: str
    log2: str
    raised: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operands of matrix products are rounded to: "as_given", "bf16" or an MX format."""

    name: str
    weight: str  # of a linear layer
    other: str  # its other operand
    weight_gradient: str  # both operands
    attention: str  # both
    convolution: str  # both


def _rows(kind: str) -> list[tuple[str, ...]]:
    """The arguments of each macro `kind` of formats.def."""
    text = (Path(__file__).parent / "formats.def").read_text(encoding="ascii")
    found = re.findall(rf"^TRN_{kind}\((.*?)\)", text, re.MULTILINE)
    return [tuple(cell.strip() for cell in row.split(",")) for row in found]


_TABLE = [
    FloatFormat(name, int(exponent), int(mantissa), Specials[specials.upper()])
    for name, exponent, mantissa, specials in _rows("FORMAT")
]
# float32, in which values are computed, and the scale are no formats that values are rounded to.
FORMATS = MappingProxyType(
    {
        row.name: row
        for row in (
            FloatFormat("float32", 8, 23, Specials.IEEE),  # [ieee]
            *(row for row in _TABLE if row.specials is not Specials.INTEGER),
            FloatFormat("float8_e8m0fnu", 8, 0, Specials.SCALE),  # [mx] 5.4.1
        )
    }
)
_BY_NAME = {row.name: row for row in _TABLE}
ELEMENTS = MappingProxyType(
    {name: Element(_BY_NAME[name], codes) for name, codes in _rows("ELEMENT")}
)
MX_FORMATS = MappingProxyType(
    {
        name: MxFormat(name=name, element=ELEMENTS[element].format)
        for name, element in _rows("MX_FORMAT")
    }
)
SCALE_RULES = MappingProxyType(
    {name: ScaleRule(name, of, log2, int(raised)) for name, of, log2, raised in _rows("SCALE_RULE")}
)
POLICIES = MappingProxyType({row[0]: Policy(*row) for row in _rows("POLICY")})
