"""torch.cuda.nccl under --as-cuda: collectives over devices of one process."""

from .test_cuda import run_as_cuda

SCRIPT = """
from functools import reduce

import torch
from torch.cuda import comm, nccl
from torch.cuda.nccl import SUM

COUNT = 3
STEPS = (torch.add, torch.mul, torch.maximum, torch.minimum)  # by NCCL's number; 4 is the mean
NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
           torch.int8, torch.uint8)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

def there(tensors):
    return [tensor.cuda(index) for index, tensor in enumerate(tensors)]

def results(dtype, size):
    return [torch.zeros(size, dtype=dtype, device=index) for index in range(COUNT)]

def check(tensors, wanted):
    for index, (tensor, value) in enumerate(zip(tensors, wanted, strict=True)):
        assert tensor.is_cuda and tensor.get_device() == index
        assert torch.equal(tensor.cpu(), value), (tensor, value)

def given(dtype, shape=(2, 6)):
    return [(torch.rand(shape) * 4 + 1).to(dtype) for _ in range(COUNT)]

def expected(tensors, op):
    narrow = tensors[0].dtype in (torch.float16, torch.bfloat16)
    wide = [tensor.float() if narrow else tensor for tensor in tensors]
    found = reduce(STEPS[op % 4], wide)
    if op == 4:
        exact = found.is_floating_point()
        found = found / COUNT if exact else found.div(COUNT, rounding_mode="trunc")
    return found.to(tensors[0].dtype)

torch.manual_seed(0)
for dtype in NUMBERS:
    for op in range(5):
        own = given(dtype)
        wanted = expected(own, op)
        nccl.all_reduce(on := there(own), op=op)
        check(on, [wanted] * COUNT)
        nccl.all_reduce(there(own), out := results(dtype, (2, 6)), op)
        check(out, [wanted] * COUNT)
        nccl.reduce(on := there(own), root=1, op=op)
        check(on, [own[0], wanted, own[2]])
        nccl.reduce(there(own), result := torch.zeros_like(own[0], device=2), 2, op)
        assert torch.equal(result.cpu(), wanted)
        nccl.reduce_scatter(there(own), out := results(dtype, 4), op)
        check(out, wanted.view(-1).split(4))
for dtype in (*NUMBERS, *FLOAT8, torch.bool):
    own = given(dtype)
    nccl.broadcast(on := tuple(there(own)), root=1)
    check(on, [own[1]] * COUNT)
    nccl.all_gather(there(own), out := results(dtype, 12 * COUNT))
    check(out, [torch.cat([tensor.view(-1) for tensor in own])] * COUNT)
flags = [torch.tensor([False, True, index == 1]) for index in range(COUNT)]
nccl.all_reduce(on := there(flags))
check(on, [torch.tensor([False, True, True])] * COUNT)
nccl.all_reduce(on := set(there(given(torch.float32))), streams=[None] * COUNT)
assert len({tuple(tensor.view(-1).tolist()) for tensor in on}) == 1

leaves = [tensor.requires_grad_() for tensor in there(given(torch.float32))]
nccl.all_reduce([leaf * 2 for leaf in leaves])  # records nothing

x = there(given(torch.float32))
other = torch.zeros(12, device=1)
for call, message in (
    (lambda: nccl.all_reduce(x[0]), "Inputs should be a collection of tensors"),
    (lambda: nccl.all_reduce([]), "input sequence can't be empty"),
    (lambda: nccl.all_reduce(x, x[:2]), "of the same length"),
    (lambda: nccl.all_reduce([x[0], x[0]]), "inputs must be on unique devices"),
    (lambda: nccl.all_reduce([x[0], other[:5]]), "all inputs must have the same number"),
    (lambda: nccl.all_reduce([x[0], x[1].half()]), "must be of the same Tensor dtype"),
    (lambda: nccl.all_reduce([x[0], x[1].cpu()]), "have to be cuda dense Tensors"),
    (lambda: nccl.all_reduce([x[0].t()]), "have to be contiguous"),
    (lambda: nccl.all_reduce(x, streams=[None]), "number of streams is not equal"),
    (lambda: nccl.all_reduce(x, op=7), "no reduction of number 7"),
    (lambda: nccl.all_reduce([x[0].to(torch.complex64)]), "Unconvertible NCCL type"),
    (lambda: nccl.all_reduce([x[0].to(torch.float8_e5m2)]), "moves its bytes alone"),
    (lambda: nccl.reduce(x, other), "must be on the same device"),
    (lambda: nccl.reduce(x, x[0], root=3), "invalid root"),
    (lambda: nccl.reduce_scatter(x, x), "output must be of size"),
    (lambda: nccl.all_gather(x, x), "output must be of size"),
    (lambda: nccl.init_rank(2, nccl.unique_id(), 0), "use torch.distributed"),
):
    try:
        call()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
assert nccl.is_available(x) and not nccl.is_available([x[0], x[0]])
assert len(nccl.unique_id()) == 128 and nccl.unique_id() != nccl.unique_id()

own = given(torch.float32)
assert torch.equal(comm.reduce_add(there(own), 1).cpu(), expected(own, SUM))
check(comm.broadcast(own[0].cuda(), [0, 1, 2]), [own[0]] * COUNT)
whole = comm.gather(comm.scatter(own[0].cuda(), [0, 1, 2], dim=1), dim=1, destination=0)
assert torch.equal(whole.cpu(), own[0])
print("done")
"""


def test_collectives_over_devices_of_one_process(tmp_path):
    done = run_as_cuda(tmp_path, SCRIPT, TRN_EMU_MATMUL="fp32")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
