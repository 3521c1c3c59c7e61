"""Matrix multiplies as in measured kernels that reuse or overlap nothing."""

from torch_trn_emu.isa import Access, Affine, Buffer, Builder, Program, Role
from torch_trn_emu.kernels.limits import BANK, P
from torch_trn_emu.kernels.matmul import Schedule

__all__ = ["SERIAL", "naive_matmul"]

SERIAL = Schedule(operand_slots=1, psum_slots=1, result_slots=1)  # nothing overlaps


def naive_matmul(m: int, k: int, n: int, *, dtype: str, slots: int = 4) -> Program:
    """Out = lhs.T @ rhs with every operand tile loaded in the inner loop; lhs is [k, m].

    Sizes are multiples of 128, 128 and 512.
    """
    b = Builder(f"naive matmul {m}x{k}x{n}", model_flops=2.0 * m * k * n)
    lhs, rhs = b.hbm("lhs", (k, m), dtype, Role.INPUT), b.hbm("rhs", (k, n), dtype, Role.WEIGHT)
    out = b.hbm("out", (m, n), dtype, Role.OUTPUT)
    left, right = b.sbuf("left", P, dtype, slots=slots), b.sbuf("right", BANK, dtype, slots=slots)
    psum, result = b.psum("psum", BANK, slots=2), b.sbuf("result", BANK, dtype, slots=2)

    def on_chip(buffer: Buffer) -> Access:
        return buffer.lanes(P, (1, buffer.row_elements))

    def in_hbm(buffer: Buffer, row: Affine, column: Affine, columns: int) -> Access:
        width = buffer.shape[1]
        return buffer.box((width, P), (1, columns), at=row * width + column)

    for m0, _ in b.tiles(m, P):
        for n0, _ in b.tiles(n, BANK):
            b.fresh(psum, result)
            for k0, _ in b.tiles(k, P):
                b.fresh(left, right)
                b.load(on_chip(left), in_hbm(lhs, k0, m0, P))
                b.load(on_chip(right), in_hbm(rhs, k0, n0, BANK))
                b.emit("nc_matmul", on_chip(psum), on_chip(left), on_chip(right), load="background")
            b.emit("tensor_copy", on_chip(result), on_chip(psum))
            b.store(in_hbm(out, m0, n0, BANK), on_chip(result))
    return b.build()
