"""An addition without tiles."""

from torch_trn_emu.isa import Builder, Program, Role, tile

__all__ = ["add_single_elements"]


def add_single_elements() -> Program:
    """The naive vector add of the course: an element per iteration, two iterations in flight."""
    count = 25600
    b = Builder("vector add of single elements")
    x, y = (b.hbm(n, (count, 1), "float32", Role.INPUT) for n in "xy")
    z = b.hbm("z", (count, 1), "float32", Role.OUTPUT)
    tiles = [b.sbuf(f"t{n}", 1, "float32", slots=2) for n in "xy"]
    one = [tile(t, (0, 0), (1, 1)) for t in tiles]
    with b.loop(count) as i:
        b.fresh(*tiles)
        b.load(one[0], tile(x, (i, 0), (1, 1)))
        b.load(one[1], tile(y, (i, 0), (1, 1)))
        b.emit("tensor_tensor", one[0], one[0], one[1], op="add")
        b.store(tile(z, (i, 0), (1, 1)), one[0])
    return b.build()
