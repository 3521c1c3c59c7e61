"""The number formats of the engines: one row each, limits follow from the bits. Add a row.

Sources
  [ieee] IEEE 754-2019 section 3
  [ocp8] OCP 8-bit floating point v1.0
  [mx]   OCP Microscaling formats v1.0
  [guide] Neuron SDK, nki/guides/architecture/trainium3_arch.rst and the dtype page
"""

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

__all__ = ["FORMATS", "FloatFormat", "Specials"]


class Specials(Enum):
    """Which codes are not numbers."""

    IEEE = "the top exponent holds inf and NaN"
    FN = "finite: all ones is NaN, there is no inf"
    NONE = "every code is a number"
    SCALE = "powers of two only: no sign, no zero, all ones is NaN"


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format of sign, exponent and mantissa."""

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
        """Bytes an element takes: tfloat32 lies in 32-bit words, float4 packs two a byte."""
        return {19: 4.0, 4: 0.5}.get(self.bits, self.bits / 8)

    @property
    def bias(self) -> int:
        return int(2 ** (self.exponent_bits - 1)) - 1

    @property
    def max_code(self) -> int:
        """The code of the largest finite value, sign bit clear."""
        magnitudes: int = 2 ** (self.exponent_bits + self.mantissa_bits)
        if self.specials is Specials.IEEE:
            return magnitudes - int(2**self.mantissa_bits) - 1
        return magnitudes - (1 if self.specials is Specials.NONE else 2)

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
        if self.specials is Specials.NONE:
            return None
        if self.specials is Specials.IEEE:
            quiet = 1 << (self.mantissa_bits - 1)
            return int(2**self.exponent_bits - 1) << self.mantissa_bits | quiet
        return int(2 ** (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def inf_code(self) -> int | None:
        return self.max_code + 1 if self.specials is Specials.IEEE else None


_TABLE = (
    #            name              E  M   specials
    FloatFormat("float32",         8, 23, Specials.IEEE),   # [ieee]
    FloatFormat("tfloat32",        8, 10, Specials.IEEE),   # [guide] 19 bits in a 32-bit word
    FloatFormat("bfloat16",        8, 7,  Specials.IEEE),   # [guide]
    FloatFormat("float16",         5, 10, Specials.IEEE),   # [ieee]
    FloatFormat("float8_e5m2",     5, 2,  Specials.IEEE),   # [ocp8] 5.3.1
    FloatFormat("float8_e4m3fn",   4, 3,  Specials.FN),     # [ocp8] 5.3.1, from trn3
    FloatFormat("float8_e4m3",     4, 3,  Specials.IEEE),   # [guide] legacy, max 240
    FloatFormat("float8_e3m4",     3, 4,  Specials.IEEE),   # [guide] names it; specials chosen
    FloatFormat("float4_e2m1fn",   2, 1,  Specials.NONE),   # [mx] 5.3.3
    FloatFormat("float8_e8m0fnu",  8, 0,  Specials.SCALE),  # [mx] 5.4.1
)  # fmt: skip

FORMATS = MappingProxyType({row.name: row for row in _TABLE})
