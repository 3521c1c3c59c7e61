"""What holds for all tests: trn computes as the host does, so that results compare bit for bit.

Tests of the numerics choose their precision themselves.
"""

import os

os.environ.setdefault("TRN_EMU_MATMUL", "fp32")  # read once, when torch is imported
