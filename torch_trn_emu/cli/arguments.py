"""Types of numbers on the command line; argparse shows what they raise."""

import math
from argparse import ArgumentTypeError

__all__ = ["positive", "tolerance"]


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def tolerance(text: str) -> float:
    """A relative difference: finite, from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no relative difference such as 0.01")
    return value
