"""The servers, and what connects their chips: a row each. To add a system, add a row.

Sources
  [arch]    Neuron SDK, about-neuron/arch/neuron-hardware/{trn1,trn2,trn3}-arch.rst
  [coll]    Neuron SDK, neuron-runtime/explore: collectives, their algorithms and topologies
  [ec2]     EC2 instance types, network performance
  [press]   re:Invent 2025 coverage of Trn3 Gen2 UltraServers
No figure of a trn3 system's collectives is measured: what follows from these rows for trn3 is
extrapolated.
"""

from dataclasses import dataclass

from .chips import get_chip
from .provenance import Figure, chosen, documented, projected

__all__ = ["SYSTEMS", "Level", "System", "get_system"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Chips that one kind of link connects. A group spans the levels from its first chip up."""

    name: str
    chips: int  # that it connects, with all levels within
    bytes_per_s: Figure  # of one chip, each way
    hop_s: Figure
    shape: str  # torus, ring, switch, link or network
    mean_hops: float = 1.0  # between two members, when everybody sends to everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A server and what it is part of, from the inside out; the last level is the cluster's."""

    name: str
    chip: str
    chips_per_server: int  # what one torchrun starts ranks for
    levels: tuple[Level, ...]
    notes: str = ""  # figures of the vendor that do not agree


def _efa(gbit_per_s: float, chips: int, source: str) -> Level:
    return Level(
        name="EFA",
        chips=0,  # any number
        bytes_per_s=documented(gbit_per_s * 1e9 / 8 / chips, source),
        hop_s=chosen(15e-6, "a message over EFA"),
        shape="network",
    )


def _torus(gb_per_s: float, source: str, hop: str) -> Level:
    """A server of trn1 or trn2: 16 chips, 4x4."""
    return Level(
        name="server",
        chips=16,
        bytes_per_s=documented(gb_per_s * 1e9, source),
        hop_s=chosen(1.5e-6, hop),
        shape="torus",
        mean_hops=2.0,
    )


def _links(name: str, chips: int, gb_per_s: float, hop_us: float, shape: str, source: str) -> Level:
    """A level of trn3-gen2."""
    return Level(
        name=name,
        chips=chips,
        bytes_per_s=documented(gb_per_s * 1e9, source),
        hop_s=chosen(hop_us * 1e-6, "[arch] less than 10 us from chip to chip"),
        shape=shape,
    )


_TRN2_SERVER = _torus(512, "[arch] 1,024 GB/s both ways, 4x4 torus", "[arch] 1 to 2 us")
_TRN2_EFA = _efa(3200, 16, "[ec2] 3.2 Tbit/s a server")
_TRN3_EFA = _efa(3200, 16, "[ec2] as trn2")
_TRN3_LINKS = 704e9  # the sum of a gen2 chip's links: 256 + 320 + 128

SYSTEMS = (
    System(
        name="trn1.32xlarge",
        chip="trn1",
        chips_per_server=16,
        levels=(
            _torus(384, "[arch] 768 GB/s both ways, 4x4 torus", "as on trn2"),
            _efa(800, 16, "[ec2] 800 Gbit/s a server"),
        ),
    ),
    System(
        name="trn2.48xlarge", chip="trn2", chips_per_server=16, levels=(_TRN2_SERVER, _TRN2_EFA)
    ),
    System(
        name="trn2-ultraserver",
        chip="trn2",
        chips_per_server=16,
        levels=(
            _TRN2_SERVER,
            Level(
                name="UltraServer",
                chips=64,
                bytes_per_s=documented(128e9, "[arch] 256 GB/s both ways, a ring of 4"),
                hop_s=chosen(1.5e-6, "[arch] 1 to 2 us"),
                shape="ring",
            ),
            _TRN2_EFA,
        ),
    ),
    System(
        name="trn3-gen1",
        chip="trn3",
        chips_per_server=4,
        levels=(
            Level(
                name="UltraServer",
                chips=64,
                bytes_per_s=chosen(_TRN3_LINKS, "as the sum of gen2's links"),
                hop_s=chosen(1.5e-6, "as gen2"),
                shape="switch",
            ),
            _TRN3_EFA,
        ),
        notes="the levels of gen1 are not published",
    ),
    System(
        name="trn3-gen2",
        chip="trn3",
        chips_per_server=4,
        levels=(
            _links("sled", 4, 256, 1.5, "switch", "[arch] 4 links of PCIe 6 x8, 64 GB/s each way"),
            _links("rack", 72, 320, 2, "switch", "[arch] 5 links"),
            _links("UltraServer", 144, 128, 1.5, "link", "[arch] 2 links to the chip's twin"),
            _TRN3_EFA,
        ),
        notes="[arch] gives 2.56 TB/s and 2,048 GiB/s of NeuronLink-v4 a chip; its links sum to "
        "704 GB/s each way, which is used",
    ),
    System(
        name="trn4-projected",
        chip="trn4",
        chips_per_server=4,
        levels=(
            Level(
                name="rack",
                chips=72,
                bytes_per_s=projected(_TRN3_LINKS, "as the sum of trn3's links"),
                hop_s=projected(2e-6, "as trn3-gen2"),
                shape="switch",
            ),
            Level(
                name="EFA",
                chips=0,
                bytes_per_s=projected(25e9, "as trn2"),
                hop_s=projected(15e-6, "as trn2"),
                shape="network",
            ),
        ),
        notes="[press] NVLink Fusion, up to 72 chips a domain; no bandwidth is public",
    ),
)


def get_system(name: str, chip: str) -> System:
    """The system called `name`, or the usual one of `chip` for "". "xN" after it is a cluster.

    Raises ValueError for a name that is unknown or of another chip, and for a chip without one.
    """
    asked = name or get_chip(chip).default_system
    base, times, count = asked.rpartition("x")
    if times and base and count.isdigit():
        asked = base
    system = next((s for s in SYSTEMS if s.name == asked), None)
    if system and system.chip == chip:
        return system
    if not name:
        raise ValueError(f"no system has {chip}: add a row for it, and name it as default_system.")
    if system:
        raise ValueError(f"{system.name} has {system.chip} chips; TRN_EMU_CHIP is {chip}.")
    raise ValueError(f"unknown system; choose from {', '.join(s.name for s in SYSTEMS)}.")
