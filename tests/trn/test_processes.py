"""Other processes: forks, spawned ones, DataLoader workers and what travels between them."""

import os
import traceback
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset, TensorDataset

SPAWN_REMEDY = "you must use the 'spawn' start method"

# Python 3.12 warns of a fork in a process with threads; here the fork is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def in_fork(work: Callable[[], object]) -> str:
    """What `work` returns, or its error, in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except Exception:
            text = traceback.format_exc()
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.ones(2, device="trn"),
        lambda x: torch.ones(2).to("trn"),
        lambda x: torch.trn.current_device(),
        lambda x: torch.trn.synchronize(),
        lambda x: torch.trn.get_rng_state(),
        lambda x: torch.trn.Stream(),
        lambda x: x + 1,
        lambda x: x.add_(1),
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
    ],
)
def test_a_fork_cannot_use_the_device_of_its_parent(use):
    x = torch.ones(2, device="trn")
    assert SPAWN_REMEDY in in_fork(lambda: use(x))
    assert x.tolist() == [1, 1]


def test_a_fork_computes_on_the_host():
    torch.ones(2, device="trn")

    def work():
        torch.manual_seed(0)  # must leave the device alone
        assert not torch.trn.is_initialized()
        return torch.ones(2).sum().item()

    assert in_fork(work) == "2.0"


class Squares(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3,), float(index)) ** 2, index


def test_workers_load_host_data_for_the_device():
    model = torch.nn.Linear(3, 1).to("trn")
    loader = DataLoader(Squares(), batch_size=2, num_workers=2, pin_memory=True)
    seen = []
    for x, index in loader:
        assert x.is_pinned()
        seen += index.to("trn", non_blocking=True).tolist()
        model(x.to("trn", non_blocking=True)).sum().backward()
    assert seen == list(range(8))


def test_pinning_without_workers_and_with_threads():
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=3, pin_memory=True)
    assert [batch[0].is_pinned() for batch in loader] == [True, True]


class OnDevice(Dataset):
    def __init__(self):
        self.data = torch.arange(4.0, device="trn")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.data[index] * 2


def test_a_dataset_on_the_device_works_in_the_process_and_is_refused_in_workers():
    assert [x.item() for x in DataLoader(OnDevice(), batch_size=None)] == [0, 2, 4, 6]
    with pytest.raises(RuntimeError, match=SPAWN_REMEDY):
        list(DataLoader(OnDevice(), num_workers=1))


def send_back(given, answer, device):
    answer.put((given.get().to(device) * 2).tolist())


def test_a_spawned_process_has_devices_of_its_own():
    context = mp.get_context("spawn")
    given, answer = context.SimpleQueue(), context.SimpleQueue()
    given.put(torch.arange(3.0))
    worker = context.Process(target=send_back, args=(given, answer, "trn:1"))
    worker.start()
    assert answer.get() == [0, 2, 4]
    worker.join(120)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device="trn"),
        lambda: torch.nn.Parameter(torch.ones(2, device="trn")),
        lambda: torch.nn.Linear(2, 2).to("trn").share_memory(),
        lambda: torch.ones(2, device="trn").untyped_storage(),
    ],
)
def test_sending_a_trn_tensor_names_the_remedy(make):
    queue = mp.get_context("spawn").SimpleQueue()
    with pytest.raises(RuntimeError, match=r"Send tensor\.cpu\(\)"):
        queue.put(make())


def test_host_tensors_are_still_shared():
    queue = mp.get_context("spawn").SimpleQueue()
    x = torch.ones(2)
    queue.put(x)
    queue.get().add_(1)
    assert x.tolist() == [2, 2]
    assert torch.ones(2).share_memory_().is_shared()
