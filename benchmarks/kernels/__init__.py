"""Kernels as measured on chips, to predict their times; no operator is lowered to them."""
