"""Every collective against its definition: values, dtypes, reduce operations, handles, groups."""

import pickle
from datetime import timedelta

import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD, given, run_checks, same
from torch.distributed import ReduceOp

MOVED = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
    torch.complex64,
]  # fmt: skip
SUMMED = [d for d in MOVED if d != torch.bool]
SHAPES = [(), (1,), (7,), (3, 129, 5), (70000,), (300000,)]
ALL = range(WORLD)


def on(rank, shape, dtype=torch.float32):
    return given(rank, shape, dtype).to(DEVICE)


def total(values, op="SUM"):
    """The contract: float32 in rank order, rounded once; integers and float64 in their own."""
    dtype = values[0].dtype
    wide = dtype
    if dtype.is_floating_point and dtype != torch.float64:
        wide = torch.float32
    out = values[0].to(wide)
    for x in values[1:]:
        x = x.to(wide)
        out = {
            "SUM": torch.add, "AVG": torch.add, "PRODUCT": torch.mul, "MIN": torch.minimum,
            "MAX": torch.maximum, "BAND": torch.bitwise_and, "BOR": torch.bitwise_or,
            "BXOR": torch.bitwise_xor,
        }[op](out, x)  # fmt: skip
    if op == "AVG":
        out = out / len(values) if wide.is_floating_point or wide.is_complex else out // len(values)
    return out.to(dtype)


def check_all_reduce_of_every_dtype_and_shape():
    for dtype in SUMMED:
        for shape in SHAPES if dtype in (torch.float32, torch.bfloat16) else SHAPES[:4]:
            x = on(RANK, shape, dtype)
            dist.all_reduce(x)
            same(x, total([given(r, shape, dtype) for r in ALL]), (dtype, shape))


def check_all_reduce_by_every_operation():
    for name in ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR"):
        bitwise = name.startswith("B")
        numbers = (torch.float32, torch.bfloat16, torch.int64)
        for dtype in (torch.int32, torch.uint8) if bitwise else numbers:
            x = on(RANK, (33, 5), dtype)
            dist.all_reduce(x, op=getattr(ReduceOp, name))
            same(x, total([given(r, (33, 5), dtype) for r in ALL], name), (name, dtype))
    x = torch.tensor([RANK == 0, False, True], device=DEVICE)
    dist.all_reduce(x)
    same(x, torch.tensor([True, False, True]))


def check_premul_sum():
    for dtype in (torch.float32, torch.bfloat16):
        x = on(RANK, (300,), dtype)
        dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.3))
        factor = torch.tensor(0.3, dtype=torch.float32)
        expected = given(0, (300,), dtype).float() * factor
        for r in list(ALL)[1:]:
            expected = expected + given(r, (300,), dtype).float() * factor
        same(x, expected.to(dtype), dtype)


def check_nan_and_infinity():
    x = torch.tensor([1.0, float("inf"), float("nan"), -0.0], device=DEVICE) * (1 if RANK else -1)
    dist.all_reduce(x, op=ReduceOp.MAX)
    assert x.isnan().tolist() == [False, False, True, False]
    payload = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32).to(DEVICE)
    y = payload.clone() if RANK == 0 else torch.zeros_like(payload)
    dist.broadcast(y, 0)
    same(y, payload.cpu())


def check_all_reduce_keeps_any_dense_layout():
    x = on(RANK, (2, 3, 4, 5)).to(memory_format=torch.channels_last)
    dist.all_reduce(x)
    same(x, total([given(r, (2, 3, 4, 5)) for r in ALL]))


def check_broadcast_reduce_of_every_dtype():
    for dtype in MOVED:
        for root in ALL:
            x = on(RANK, (5, 3), dtype)
            dist.broadcast(x, root)
            same(x, given(root, (5, 3), dtype), dtype)
    for root in ALL:
        x = on(RANK, (300000,))
        dist.reduce(x, root)
        if root == RANK:
            same(x, total([given(r, (300000,)) for r in ALL]))


def check_all_gather():
    for dtype in MOVED:
        out = [torch.zeros_like(on(0, (4, 3), dtype)) for _ in ALL]
        dist.all_gather(out, on(RANK, (4, 3), dtype))
        for r in ALL:
            same(out[r], given(r, (4, 3), dtype), dtype)
    out = [torch.zeros(50000 * r + 3, device=DEVICE) for r in ALL]
    dist.all_gather(out, on(RANK, (50000 * RANK + 3,)))
    for r in ALL:
        same(out[r], given(r, (50000 * r + 3,)), "uneven")
    flat = torch.zeros(WORLD * 200000, device=DEVICE)
    dist.all_gather_into_tensor(flat, on(RANK, (200000,)))
    same(flat, torch.cat([given(r, (200000,)) for r in ALL]))


def check_reduce_scatter():
    for op in (ReduceOp.SUM, ReduceOp.AVG):
        for dtype in (torch.float32, torch.bfloat16):
            full = (WORLD * 70000,)
            out = torch.zeros(70000, dtype=dtype, device=DEVICE)
            dist.reduce_scatter_tensor(out, on(RANK, full, dtype), op=op)
            name = "SUM" if op == ReduceOp.SUM else "AVG"
            expected = total([given(r, full, dtype) for r in ALL], name)
            same(out, expected.chunk(WORLD)[RANK])
    sizes = [3 * r + 1 for r in ALL]  # not alike
    out = torch.zeros(sizes[RANK], device=DEVICE)
    dist.reduce_scatter(out, list(on(RANK, (sum(sizes),)).split(sizes)))
    same(out, total([given(r, (sum(sizes),)) for r in ALL]).split(sizes)[RANK])


def check_an_all_reduce_is_reduce_scatter_and_all_gather():
    x = on(RANK, (WORLD * 100000,), torch.bfloat16)
    share = torch.empty(100000, dtype=x.dtype, device=DEVICE)
    dist.reduce_scatter_tensor(share, x)
    whole = torch.empty_like(x)
    dist.all_gather_into_tensor(whole, share)
    dist.all_reduce(x)
    same(x, whole.cpu())


def check_gather_and_scatter():
    for root in ALL:
        out = [torch.zeros(6, device=DEVICE) for _ in ALL] if root == RANK else None
        dist.gather(on(RANK, (6,)), out, dst=root)
        if root == RANK:
            for r in ALL:
                same(out[r], given(r, (6,)))
        mine = torch.zeros(100000, device=DEVICE)
        dist.scatter(mine, [on(r, (100000,)) for r in ALL] if root == RANK else None, src=root)
        same(mine, given(RANK, (100000,)))


def check_all_to_all():
    out = torch.zeros(WORLD * 40000, device=DEVICE)
    dist.all_to_all_single(out, on(RANK, (WORLD * 40000,)))
    same(out, torch.cat([given(r, (WORLD * 40000,)).chunk(WORLD)[RANK] for r in ALL]))
    # Rank r sends (r + d) rows to rank d: also none at all.
    sent, received = [RANK + d for d in ALL], [r + RANK for r in ALL]
    out = torch.zeros(sum(received), 3, device=DEVICE)
    dist.all_to_all_single(out, on(RANK, (sum(sent), 3)), received, sent)
    rows = [given(r, (sum(r + d for d in ALL), 3)).split([r + d for d in ALL])[RANK] for r in ALL]
    same(out, torch.cat(rows))
    outs = [torch.zeros(r + 1, dtype=torch.bfloat16, device=DEVICE) for r in ALL]
    dist.all_to_all(outs, [on(RANK, (RANK + 1,), torch.bfloat16) for _ in ALL])
    for r in ALL:
        same(outs[r], given(r, (r + 1,), torch.bfloat16))


def check_empty_tensors():
    x = torch.zeros(0, device=DEVICE)
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    out = [torch.zeros(0, 3, device=DEVICE) for _ in ALL]
    dist.all_gather(out, torch.zeros(0, 3, device=DEVICE))
    dist.all_to_all_single(x, torch.zeros(0, device=DEVICE))


def check_handles_futures_and_order():
    works, tensors = [], []
    for i in range(20):
        tensors.append(torch.full((100,), float(RANK + i), device=DEVICE))
        works.append(dist.all_reduce(tensors[-1], async_op=True))
    dist.barrier()
    for i, work in enumerate(works):
        work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert tensors[i][0].item() == sum(r + i for r in ALL)
    work = dist.all_reduce(x := torch.ones(3, device=DEVICE), async_op=True)
    doubled = work.get_future().then(lambda f: [t * 2 for t in f.value()])
    assert doubled.wait()[0].tolist() == [2.0 * WORLD] * 3
    assert x.is_trn
    outputs = [torch.empty(2, device=DEVICE) for _ in ALL]
    work = dist.all_gather(outputs, torch.full((2,), float(RANK), device=DEVICE), async_op=True)
    rows = work.get_future().wait()  # as NCCL's: one tensor with a row for each rank
    assert [row.tolist() for row in rows] == [[[float(r)] * 2 for r in ALL]]
    assert [one.tolist() for one in outputs] == rows[0].tolist()
    group = dist.distributed_c10d._get_default_group()
    assert group._get_backend(DEVICE).name() == "trn"
    group._enable_collectives_timing()


def check_sparse_all_reduce():
    def given_by(rank, dtype):  # two places for the same index, and none on the last rank
        places = torch.tensor([[0, rank + 1, 0]])[:, : 0 if rank == WORLD - 1 > 0 else 3]
        values = torch.arange(1, 7).reshape(3, 2)[: places.shape[1]].to(dtype) + rank
        return torch.sparse_coo_tensor(places, values, (WORLD + 1, 2), check_invariants=True)

    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        expected = sum(given_by(r, torch.float64).to_dense() for r in ALL).to(dtype)
        x = given_by(RANK, dtype).to(DEVICE)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        assert x.is_sparse
        assert x.is_trn
        assert torch.equal(x.to_dense().cpu(), expected)
        assert torch.equal(work.get_future().wait()[0].to_dense().cpu(), expected)
    mean = given_by(RANK, torch.float32).to(DEVICE)
    dist.all_reduce(mean, op=ReduceOp.AVG)
    total = sum(given_by(r, torch.float32).to_dense() for r in ALL)
    assert torch.allclose(mean.to_dense().cpu(), total / WORLD)
    for tensor, op, said in (
        (torch.eye(2 + RANK), ReduceOp.SUM, "differ in dtype or sizes" if WORLD > 1 else ""),
        (torch.eye(2), ReduceOp.MAX, "not by MAX"),
    ):
        text = ""
        try:
            dist.all_reduce(tensor.to_sparse().to(DEVICE), op=op)
        except RuntimeError as error:
            text = str(error)
        assert said in text, text
    embedding = torch.nn.Embedding(8, 2, sparse=True).to(DEVICE)
    model = torch.nn.parallel.DistributedDataParallel(embedding)
    model(torch.tensor([RANK, 5, 5], device=DEVICE)).sum().backward()
    assert embedding.weight.grad.is_sparse
    counts = embedding.weight.grad.to_dense()[:, 0].cpu()
    expected = torch.zeros(8)
    expected[5] = 2.0
    expected[:WORLD] += 1 / WORLD
    assert torch.allclose(counts, expected), counts


def check_messages():
    right, left = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    for shape in ((), (5,), (300000,)):
        x, y = on(RANK, shape), torch.zeros(shape, device=DEVICE)
        ops = [dist.P2POp(dist.irecv, y, left), dist.P2POp(dist.isend, x, right)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        same(y, given(left, shape))
    # By tag, whatever the order of arrival.
    for tag in (1, 2):
        dist.isend(torch.full((2,), float(tag), device=DEVICE), right, tag=tag)
    two, one = torch.zeros(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    dist.recv(two, left, tag=2)
    dist.recv(one, left, tag=1)
    assert (one.tolist(), two.tolist()) == ([1, 1], [2, 2])
    dist.barrier()
    if RANK == 0:
        seen = set()
        for _ in range(WORLD - 1):
            x = torch.zeros(1, device=DEVICE)
            seen.add((dist.recv(x), int(x.item())))
        assert seen == {(r, r) for r in ALL if r}
    else:
        dist.send(torch.tensor([float(RANK)], device=DEVICE), 0)


def check_coalesced():
    from torch.distributed.distributed_c10d import _coalescing_manager

    a, b = on(RANK, (5,)), on(RANK, (300000,))
    with _coalescing_manager(device=DEVICE, async_ops=True) as manager:
        dist.all_reduce(a)
        dist.all_reduce(b)
    manager.wait()
    same(a, total([given(r, (5,)) for r in ALL]))
    same(b, total([given(r, (300000,)) for r in ALL]))
    outs = [torch.zeros(WORLD * n, device=DEVICE) for n in (3, 100)]
    with _coalescing_manager(device=DEVICE):
        for out, n in zip(outs, (3, 100), strict=True):
            dist.all_gather_into_tensor(out, on(RANK, (n,)))
    for out, n in zip(outs, (3, 100), strict=True):
        same(out, torch.cat([given(r, (n,)) for r in ALL]))


def check_all_gather_coalesced():
    from torch.distributed.distributed_c10d import all_gather_coalesced

    shapes = [(3,), (2, 70000), (0,), (1, 1)]
    outs = [[torch.zeros(s, device=DEVICE) for s in shapes] for _ in ALL]
    all_gather_coalesced(outs, [on(RANK, s) for s in shapes])
    for r, by_rank in zip(ALL, outs, strict=True):
        for out, shape in zip(by_rank, shapes, strict=True):
            same(out, given(r, shape))


def check_a_batch_of_messages_to_itself():
    x, y = on(RANK, (7,)), on(RANK, (3, 2), torch.bfloat16)
    a, b = torch.empty_like(x), torch.empty_like(y)
    batch = [
        dist.P2POp(dist.irecv, a, RANK),
        dist.P2POp(dist.isend, x, RANK),
        dist.P2POp(dist.isend, y, RANK),
        dist.P2POp(dist.irecv, b, RANK),
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    same(a, given(RANK, (7,)))
    same(b, given(RANK, (3, 2), torch.bfloat16))
    for wrong in (batch[:1], batch[1:2], [batch[0], batch[2]]):
        said = ""
        try:
            dist.batch_isend_irecv(wrong)
        except ValueError as error:
            said = str(error)
        assert "batch has no" in said or "one size and dtype" in said, said


def check_objects():
    found = [None] * WORLD
    dist.all_gather_object(found, {"rank": RANK, "text": "x" * RANK})
    assert found == [{"rank": r, "text": "x" * r} for r in ALL]
    values = [RANK, "of rank 0"] if RANK == 0 else [None, None]
    dist.broadcast_object_list(values, src=0)
    assert values == [0, "of rank 0"]


def check_groups():
    ends = dist.new_group([0, WORLD - 1], timeout=timedelta(seconds=60), group_desc="ends")
    x = torch.ones(4, device=DEVICE)
    if RANK in (0, WORLD - 1):
        dist.all_reduce(x, group=ends)
        assert x.tolist() == [2.0] * 4
    mesh = dist.init_device_mesh("trn", (WORLD,), mesh_dim_names=("dp",))
    y = torch.ones(1, device=DEVICE)
    dist.all_reduce(y, group=mesh.get_group("dp"))
    assert y.item() == WORLD


def check_options_and_numbers():
    import copy

    backend = dist.distributed_c10d._get_default_group()._get_backend(DEVICE)
    assert backend.supports_splitting
    assert backend.supports_coalescing
    assert copy.deepcopy(backend.options)._timeout == backend.options._timeout
    before = backend._get_sequence_number_for_group()
    dist.barrier()
    assert backend._get_sequence_number_for_group() == before + 1
    backend.set_timeout(timedelta(seconds=77))
    assert backend.options._timeout == timedelta(seconds=77)
    backend.set_timeout(timedelta(seconds=120))


def check_what_is_refused():
    def message(call, kind=Exception):
        try:
            call()
        except kind as error:
            return str(error)
        raise AssertionError("no error")

    text = message(lambda: dist.all_reduce(torch.ones(4, 4, device=DEVICE)[:, ::2]))
    assert "call contiguous() first" in text, text
    text = message(lambda: dist.all_reduce(torch.ones(3, device=DEVICE), op=ReduceOp.BAND))
    assert "ReduceOp.BAND of Float" in text, text
    text = message(lambda: dist.all_reduce(torch.ones(3)), RuntimeError)
    assert "No backend type associated with device type cpu" in text, text
    odd = torch.ones(WORLD + 1, device=DEVICE)
    text = message(lambda: dist.all_to_all_single(odd, odd.clone()))
    assert "does not divide" in text, text
    text = message(lambda: dist.broadcast(torch.ones(2, device=DEVICE).to_sparse(), 0))
    assert "c10d::broadcast_ is not implemented on trn" in text, text


def check_a_captured_graph_repeats_its_collectives():
    import torch.distributed._functional_collectives as functional

    x = torch.full((1000,), RANK + 1.0, device=DEVICE)
    rows = torch.zeros(WORLD * 1000, device=DEVICE)
    late = torch.ones(1000, device=DEVICE)
    given = x.clone()
    graph = torch.trn.Graph()
    with torch.trn.graph(graph):
        dist.broadcast(x, 0)
        work = dist.all_reduce(late, async_op=True)
        dist.all_gather_single(rows, x + RANK)
        work.wait()
        mean = functional.all_reduce(given + 1, "avg", dist.group.WORLD) * 2
    assert x.tolist() == [RANK + 1.0] * 1000
    assert not rows.any()
    assert late.eq(1).all()
    for replay in range(3):
        graph.replay()
        same(x, torch.ones(1000))
        same(rows, torch.arange(1.0, WORLD + 1).repeat_interleave(1000))
        same(late, torch.full((1000,), float(WORLD ** (replay + 1))))
        same(mean, torch.full((1000,), 2 * (replay + 1 + (WORLD + 1) / 2)))
        given.add_(1)


def check_work_pickles_nothing_and_duration_is_simulated():
    x = torch.ones(1 << 20, device=DEVICE)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    assert 0 <= work._get_duration() < 1000
    assert pickle.loads(pickle.dumps(x)).is_trn


if __name__ == "__main__":
    run_checks(dict(globals()), timeout=timedelta(seconds=120))
