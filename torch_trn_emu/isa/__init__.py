"""The waist: Programs of engine instructions, and what makes, checks and prints them."""

from .affine import Affine, Index, affine
from .builder import Builder, tile
from .dump import dump
from .opcodes import OPCODES, Opcode
from .program import (
    Access,
    Attribute,
    Buffer,
    Engine,
    Fresh,
    Instruction,
    Loop,
    Memory,
    Node,
    Program,
    Residence,
    Role,
    Take,
    Wait,
    itemsize,
)
from .validate import fits, validate
from .view import Label, Source, Split, View, dense_strides

__all__ = [
    "OPCODES",
    "Access",
    "Affine",
    "Attribute",
    "Buffer",
    "Builder",
    "Engine",
    "Fresh",
    "Index",
    "Instruction",
    "Label",
    "Loop",
    "Memory",
    "Node",
    "Opcode",
    "Program",
    "Residence",
    "Role",
    "Source",
    "Split",
    "Take",
    "View",
    "Wait",
    "affine",
    "dense_strides",
    "dump",
    "fits",
    "itemsize",
    "tile",
    "validate",
]
