"""Devices: count, choice, properties, and what happens with an index that does not exist."""

import threading

import pytest
import torch

COUNT = 4  # trn3 at LNC=2
BAD_INDEX = "invalid device ordinal"

# What the device module must offer: the names of torch.cuda, and those torch asks any device for.
NAMES = """
    is_available is_initialized init device_count current_device set_device device device_of
    get_device_name get_device_properties get_device_capability synchronize
    Stream stream current_stream default_stream set_stream Event
    manual_seed manual_seed_all seed seed_all initial_seed default_generators
    get_rng_state get_rng_state_all set_rng_state set_rng_state_all
    memory_allocated max_memory_allocated memory_reserved max_memory_reserved
    memory_stats memory_summary reset_peak_memory_stats reset_accumulated_memory_stats
    empty_cache mem_get_info get_amp_supported_dtype is_bf16_supported
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_the_device_module_offers(name):
    assert name in torch.trn.__all__
    assert getattr(torch.trn, name) is not None


def test_the_default_chip_shows_four_logical_cores():
    assert torch.trn.is_available()
    assert torch.trn.device_count() == COUNT
    assert torch.get_device_module("trn") is torch.trn
    assert torch.get_device_module() is torch.trn


def test_the_accelerator_is_trn():
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("trn")
    assert torch.accelerator.device_count() == COUNT
    assert torch.accelerator.current_device_index() == torch.trn.current_device() == 0
    torch.accelerator.synchronize()
    torch.accelerator.synchronize(1)


def converts(dtype, to):
    try:
        torch.empty(4, dtype=dtype, device="trn").to(to).to(dtype)
    except (RuntimeError, TypeError):
        return False
    return True


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support", "ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_the_accelerator_names_exactly_the_dtypes_that_convert():
    every = {d for d in vars(torch).values() if isinstance(d, torch.dtype)}
    named = torch.accelerator.get_device_capability()["supported_dtypes"]
    assert named == {d for d in every if converts(d, torch.float32)}
    assert all(converts(a, b) for a in named for b in named)


def test_device_context_managers_nest_and_restore():
    with torch.trn.device(1):
        assert torch.trn.current_device() == 1
        assert torch.ones(1, device="trn").device.index == 1
        with torch.trn.device("trn:3"), torch.trn.device(torch.device("trn", 2)):
            assert torch.trn.current_device() == 2
        with torch.trn.device(-1):
            assert torch.trn.current_device() == 1
        with torch.trn.device("trn"):
            assert torch.trn.current_device() == 1
    assert torch.trn.current_device() == 0


def test_a_device_context_restores_after_an_error():
    with pytest.raises(KeyError), torch.trn.device(1):
        raise KeyError
    assert torch.trn.current_device() == 0


def test_device_of_follows_a_tensor():
    with torch.trn.device_of(torch.ones(1, device="trn:2")):
        assert torch.trn.current_device() == 2
    with torch.trn.device_of(torch.ones(1)):
        assert torch.trn.current_device() == 0


def test_the_accelerator_context_is_the_same_state():
    with torch.accelerator.device_index(3):
        assert torch.trn.current_device() == 3
    torch.accelerator.set_device_index(1)
    assert torch.trn.current_device() == 1
    torch.trn.set_device(0)
    assert torch.accelerator.current_device_index() == 0


@pytest.mark.parametrize("device", [2, "trn:2", torch.device("trn", 2)])
def test_set_device_takes_an_index_a_name_or_a_device(device):
    torch.trn.set_device(device)
    assert torch.trn.current_device() == 2
    torch.trn.set_device(-1)  # as on CUDA, nothing
    assert torch.trn.current_device() == 2
    torch.trn.set_device(0)


def test_the_current_device_belongs_to_the_thread():
    seen = []

    def other():
        seen.append(torch.trn.current_device())
        torch.trn.set_device(3)
        seen.append(torch.trn.current_device())

    with torch.trn.device(1):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == [0, 3]
        assert torch.trn.current_device() == 1


@pytest.mark.parametrize("index", [COUNT, 99, 256, 300])
@pytest.mark.parametrize(
    "use",
    [
        torch.trn.set_device,
        torch.trn.get_device_properties,
        torch.trn.get_device_name,
        torch.trn.get_device_capability,
        torch.trn.synchronize,
        torch.trn.current_stream,
        torch.trn.default_stream,
        torch.trn.Stream,
        torch.trn.memory_allocated,
        torch.trn.memory_stats,
        torch.trn.memory_summary,
        torch.trn.mem_get_info,
        torch.trn.reset_peak_memory_stats,
        torch.trn.reset_accumulated_memory_stats,
        torch.trn.get_rng_state,
        lambda index: torch.trn.device(index).__enter__(),
        lambda index: torch.trn.set_rng_state(torch.get_rng_state(), index),
    ],
)
def test_an_index_that_does_not_exist_is_refused(use, index):
    with pytest.raises(RuntimeError, match=BAD_INDEX) as caught:
        use(index)
    assert "frame #" not in str(caught.value)
    assert torch.trn.current_device() == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.ones(2, device="trn:9"),
        lambda: torch.randn(2, device="trn:9"),
        lambda: torch.tensor([1], device="trn:9"),
        lambda: torch.ones(2).to("trn:9"),
        lambda: torch.ones(2, device="trn").to("trn:9"),
        lambda: torch.ones(2).trn(9),
        lambda: torch.nn.Linear(2, 2).to("trn:9"),
        lambda: torch.nn.Linear(2, 2, device="trn:9"),
        lambda: torch.Generator("trn:9"),
        lambda: torch.UntypedStorage(4, device="trn:9"),
        lambda: torch.Stream("trn:9"),
        lambda: torch.accelerator.set_device_index(9),
        lambda: torch.accelerator.memory_allocated(9),
        lambda: torch.accelerator.current_stream(9),
    ],
)
def test_no_tensor_is_made_on_an_index_that_does_not_exist(use):
    with pytest.raises(RuntimeError, match=BAD_INDEX):
        use()


@pytest.mark.parametrize(
    "use",
    [torch.trn.set_device, torch.trn.get_device_properties, torch.trn.memory_allocated],
)
def test_another_device_type_is_refused(use):
    with pytest.raises(ValueError, match="Expected a trn device, but got: cpu"):
        use("cpu")


def test_properties_describe_one_logical_core():
    properties = torch.trn.get_device_properties("trn:3")
    assert properties.name == torch.trn.get_device_name(3) == "AWS Trainium3 (emulated)"
    assert properties.total_memory == 36 << 30
    assert properties.chip == "trn3"
    assert properties.logical_core == 3
    assert properties.physical_cores == 2
    assert (properties.major, properties.minor) == torch.trn.get_device_capability() == (4, 0)
    assert properties.sbuf_bytes == 2 * (32 << 20)
    assert properties.psum_bytes == 2 * (2 << 20)


def test_each_core_has_an_identifier_of_its_own():
    names = [str(torch.trn.get_device_properties(k).uuid) for k in range(COUNT)]
    assert len(set(names)) == COUNT
    assert names[1] == str(torch.trn.get_device_properties(1).uuid)


def test_the_device_knows_its_formats_for_autocast():
    assert torch.trn.get_amp_supported_dtype() == [torch.bfloat16, torch.float16]
    assert torch.trn.is_bf16_supported()


def test_use_initialises():
    torch.trn.init()
    assert torch.trn.is_initialized()
