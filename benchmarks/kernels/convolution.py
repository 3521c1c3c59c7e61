"""A convolution whose weights lie in HBM as the array wants them."""

from math import ceil

from torch_trn_emu.chip import Chip
from torch_trn_emu.isa import Program
from torch_trn_emu.kernels.convolution.forward import conv
from torch_trn_emu.kernels.convolution.shape import Convolution
from torch_trn_emu.kernels.matmul import HAND, Schedule
from torch_trn_emu.kernels.windows import Axis

__all__ = ["conv2d"]


def conv2d(
    batch: int,
    channels: int,
    height: int,
    width: int,
    filters: int,
    kernel: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    schedule: Schedule = HAND,
    cores: int = 1,
) -> Program:
    """out[b, f, y, x] = sum of in[b, c, y + i, x + j] * weight[f, c, i, j]; stride 1, no padding.

    Weights come as [c, i, j, f], which the stationary operand wants; filters are split over cores.
    """
    rows, columns = height - kernel + 1, width - kernel + 1
    spec = Convolution(
        batch=batch,
        channels=channels,
        filters=ceil(filters / cores),
        axes=(
            Axis(size=1, out=1, kernel=1),
            Axis(size=height, out=rows, kernel=kernel),
            Axis(size=width, out=columns, kernel=kernel),
        ),
        dtype=dtype,
        compute=dtype,
        weights_transposed=True,
        share=False,
        flops=2.0 * batch * filters * channels * kernel**2 * rows * columns,
    )
    return conv(spec, chip=chip, schedule=schedule, cores=cores)
