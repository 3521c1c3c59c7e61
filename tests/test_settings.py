"""The environment: what each variable means, and what a wrong value says."""

import pytest

from torch_trn_emu.errors import ChipLimit, Unsupported
from torch_trn_emu.settings import read


def test_nothing_set_is_a_whole_trn3():
    s = read({})
    assert s.chip.name == "trn3"
    assert s.lnc == 2
    assert s.visible_cores == (0, 1, 2, 3)
    assert s.matmul_precision is None
    assert not s.stochastic_rounding


@pytest.mark.parametrize("variable", ["TRN_EMU_CHIP", "NEURON_PLATFORM_TARGET_OVERRIDE"])
@pytest.mark.parametrize(
    ("chip", "cores", "gib"), [("trn1", 2, 16), ("trn2", 4, 24), ("trn3", 4, 36)]
)
def test_the_chip_is_chosen_by_name(variable, chip, cores, gib):
    s = read({variable: chip})
    assert s.chip.name == chip
    assert len(s.visible_cores) == cores
    assert s.chip.hbm_bytes_per_logical_core(s.lnc) == gib << 30


def test_both_chip_variables_may_agree():
    assert (
        read({"TRN_EMU_CHIP": "trn2", "NEURON_PLATFORM_TARGET_OVERRIDE": "trn2"}).chip.name
        == "trn2"
    )


@pytest.mark.parametrize("variable", ["NEURON_RT_VIRTUAL_CORE_SIZE", "NEURON_LOGICAL_NC_CONFIG"])
def test_the_core_size_makes_logical_cores(variable):
    s = read({variable: "1"})
    assert s.lnc == 1
    assert s.visible_cores == tuple(range(8))


@pytest.mark.parametrize(
    ("text", "cores"), [("2", (2,)), ("0,3", (0, 3)), ("1-3", (1, 2, 3)), ("3, 0-1", (3, 0, 1))]
)
def test_visible_cores_is_a_list_with_ranges(text, cores):
    assert read({"NEURON_RT_VISIBLE_CORES": text}).visible_cores == cores


def test_num_cores_counts_from_zero_and_yields_to_visible_cores():
    assert read({"NEURON_RT_NUM_CORES": "2"}).visible_cores == (0, 1)
    assert read({"NEURON_RT_NUM_CORES": "2", "NEURON_RT_VISIBLE_CORES": "3"}).visible_cores == (3,)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("2", (2,)), ("3, 0", (3, 0)), ("1,-1,2", (1,)), ("0,9,1", (0,)), ("", (0, 1, 2, 3))],
)
def test_cuda_visible_devices_counts_under_the_name_of_cuda(text, cores):
    named = {"CUDA_VISIBLE_DEVICES": text}
    assert read({"TRN_EMU_AS": "cuda", **named}).visible_cores == cores
    assert read(named).visible_cores == (0, 1, 2, 3)
    given = {"TRN_EMU_AS": "cuda", "NEURON_RT_VISIBLE_CORES": "1"}
    assert read(given | named).visible_cores == (1,)


@pytest.mark.parametrize("text", ["-1", "none", "GPU-8932f937", "9"])
def test_cuda_visible_devices_leaves_a_core(text):
    with pytest.raises(ValueError, match="leaves no core"):
        read({"TRN_EMU_AS": "cuda", "CUDA_VISIBLE_DEVICES": text})


def test_empty_variables_count_as_absent():
    names = (
        "TRN_EMU_CHIP",
        "NEURON_PLATFORM_TARGET_OVERRIDE",
        "NEURON_RT_NUM_CORES",
        "NEURON_RT_VISIBLE_CORES",
        "NEURON_RT_VIRTUAL_CORE_SIZE",
        "NEURON_LOGICAL_NC_CONFIG",
        "NEURON_RT_STOCHASTIC_ROUNDING_EN",
        "NEURON_RT_STOCHASTIC_ROUNDING_SEED",
        "TRN_EMU_MATMUL",
    )
    assert read(dict.fromkeys(names, "")) == read({})


def test_stochastic_rounding_is_a_switch_and_a_seed():
    s = read({"NEURON_RT_STOCHASTIC_ROUNDING_EN": "1", "NEURON_RT_STOCHASTIC_ROUNDING_SEED": "7"})
    assert s.stochastic_rounding
    assert s.stochastic_rounding_seed == 7


WRONG = (
    # what is set                                     kind        the text names
    ({"TRN_EMU_CHIP": "trn9"}, Unsupported, "TRN_EMU_CHIP='trn9'"),
    ({"NEURON_PLATFORM_TARGET_OVERRIDE": "inf2"}, Unsupported, "inf2"),
    ({"TRN_EMU_CHIP": "trn1", "NEURON_PLATFORM_TARGET_OVERRIDE": "trn2"}, ValueError, "disagree"),
    ({"NEURON_LOGICAL_NC_CONFIG": "1", "NEURON_RT_VIRTUAL_CORE_SIZE": "2"}, ValueError, "disagree"),
    ({"NEURON_LOGICAL_NC_CONFIG": "two"}, ValueError, "NEURON_LOGICAL_NC_CONFIG='two'"),
    ({"NEURON_RT_VIRTUAL_CORE_SIZE": "two"}, ValueError, "NEURON_RT_VIRTUAL_CORE_SIZE='two'"),
    ({"NEURON_LOGICAL_NC_CONFIG": "3"}, ChipLimit, "3"),
    ({"TRN_EMU_CHIP": "trn1", "NEURON_LOGICAL_NC_CONFIG": "2"}, ChipLimit, "trn1"),
    ({"NEURON_RT_NUM_CORES": "0"}, ValueError, "NEURON_RT_NUM_CORES='0'"),
    ({"NEURON_RT_NUM_CORES": "-1"}, ValueError, "NEURON_RT_NUM_CORES='-1'"),
    ({"NEURON_RT_NUM_CORES": "5"}, ValueError, "NEURON_RT_NUM_CORES='5'"),
    ({"NEURON_RT_NUM_CORES": "many"}, ValueError, "NEURON_RT_NUM_CORES='many'"),
    ({"NEURON_RT_VISIBLE_CORES": "4"}, ValueError, "NEURON_RT_VISIBLE_CORES='4'"),
    ({"NEURON_RT_VISIBLE_CORES": "0,0"}, ValueError, "NEURON_RT_VISIBLE_CORES='0,0'"),
    ({"NEURON_RT_VISIBLE_CORES": "3-1"}, ValueError, "NEURON_RT_VISIBLE_CORES='3-1'"),
    ({"NEURON_RT_VISIBLE_CORES": "0,"}, ValueError, "NEURON_RT_VISIBLE_CORES='0,'"),
    ({"NEURON_RT_VISIBLE_CORES": "a-b"}, ValueError, "NEURON_RT_VISIBLE_CORES='a-b'"),
    ({"NEURON_RT_STOCHASTIC_ROUNDING_EN": "yes"}, ValueError, "NEURON_RT_STOCHASTIC_ROUNDING_EN"),
    ({"NEURON_RT_STOCHASTIC_ROUNDING_SEED": "x"}, ValueError, "NEURON_RT_STOCHASTIC_ROUNDING_SEED"),
)  # fmt: skip


@pytest.mark.parametrize(("environ", "kind", "named"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_value_is_named(environ, kind, named):
    with pytest.raises(kind) as caught:
        read(environ)
    assert named in str(caught.value)


def test_the_instruction_set_may_be_limited():
    assert read({}).isa is None
    assert read({"TRN_EMU_ISA": "avx2"}).isa == "avx2"
    with pytest.raises(ValueError, match="TRN_EMU_ISA='sse' is unknown; choose from plain, avx2"):
        read({"TRN_EMU_ISA": "sse"})
