"""Python threads: two train on two devices, many work on one tensor."""

import threading
from collections.abc import Callable

import torch
from torch import nn


def in_threads(count: int, work: Callable[[int], object]) -> list:
    """What `work(0)`, `work(1)`, ... return, all run at the same time."""
    results: list = [None] * count
    errors = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return results


def train(device: str, steps: int = 30) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 8)
    x, y = torch.randn(64, 16, generator=generator), torch.randn(64, 4, generator=generator)
    model, x, y = model.to(device), x.to(device), y.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_two_threads_train_on_two_devices_as_one_does():
    alone = train("trn")
    assert alone[-1] < alone[0]
    assert in_threads(2, lambda number: train(f"trn:{number}")) == [alone, alone]


def test_threads_train_on_one_device_too():
    alone = train("trn", 10)
    assert in_threads(3, lambda _: train("trn", 10)) == [alone] * 3


def test_threads_read_one_tensor():
    x = torch.randn(100, 100, device="trn")
    expected = x.sort(0).values.cpu()
    for values in in_threads(4, lambda _: [x.sort(0).values.cpu() for _ in range(20)]):
        assert all(torch.equal(value, expected) for value in values)


def test_threads_resize_and_view_tensors_of_one_storage():
    x = torch.arange(1000.0, device="trn")

    def work(number: int) -> float:
        total = 0.0
        for i in range(100):
            part = x[number * 100 : number * 100 + 50]
            part.add_(1)
            total += part.clone().resize_(10 + i % 7).sum().item()
        return total

    in_threads(4, work)
    for number in range(4):
        start = number * 100
        expected = torch.arange(start, start + 50.0) + 100
        assert torch.equal(x[start : start + 50].cpu(), expected)


def test_memory_made_in_one_thread_is_freed_in_another():
    before = torch.trn.memory_allocated()
    made = in_threads(4, lambda number: [torch.ones(1000 * (1 + number)).trn() for _ in range(50)])
    in_threads(4, lambda number: made[number].clear())
    assert torch.trn.memory_allocated() == before


def test_random_draws_of_threads_on_their_own_devices_repeat():
    def draw(number: int) -> torch.Tensor:
        with torch.trn.device(number):
            torch.trn.manual_seed(3)
            parts = [torch.rand(9, device="trn") for _ in range(20)]
            parts += [nn.functional.dropout(torch.ones(9, device="trn")) for _ in range(20)]
            return torch.cat(parts).cpu()

    results = in_threads(4, draw)
    assert all(torch.equal(result, results[0]) for result in results)
