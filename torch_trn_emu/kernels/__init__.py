"""How the engines do it: functions of sizes, dtypes and a chip that give a `Program`.

Nothing here knows an operator's name: `ops` reads a call and says which kernel computes it.
"""

__all__ = ["attention", "batch_norm", "convolution", "matmul", "pooling", "rows"]
