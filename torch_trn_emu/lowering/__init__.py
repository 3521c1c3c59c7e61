"""Lowering: what an operation becomes on the engines. A module per family."""

__all__ = ["convolution", "matmul", "movement", "normalization", "pointwise", "reduction"]
