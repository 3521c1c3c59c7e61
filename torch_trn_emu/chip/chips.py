"""The chips: one value each. To add one, add a `Chip` to `CHIPS`, its peaks to test_chips.py.

An announced chip is a projection of the one before it: all of its figures are `projected`.

Sources
  [arch]    Neuron SDK, about-neuron/arch/neuron-hardware/{trainium,trainium2,trainium3}.rst
  [guide]   Neuron SDK, nki/guides/architecture/{trainium,trainium2,trainium3}_arch.rst
  [isa]     Neuron SDK v2.26.1, nki.isa pages (cost formulas)
  [dma]     Neuron SDK, nki/deep-dives/nki-dma-overview, nki-dma-bandwidth-guide; screenshots
  [lnc]     Neuron SDK, neuron-features/logical-neuroncore-config.rst
  [nkipy]   nkipy, HardwareConstants.h
  [nkilib]  nki-library, top-k cost model
  [xpu]     xpu-perf, NEURON vendor notes (trn2, TorchNeuron beta)
  [gemm]    InferenceX, trn3_lnc2_gemm: profiles of 36 products on Trn3
  [press]   Next Platform 2025-12-03 and other re:Invent 2025 coverage
`calNN` and `gemmNN` are rows of measured_calibration.csv and measured_trn3_gemm.csv in
benchmarks/data. What is fitted on trn2 is used for trn3 where nothing public was measured there;
such figures are `inferred`.
"""

from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from ..errors import Unsupported
from .provenance import Figure, calibrated, chosen, documented, inferred, measured, projected
from .spec import (
    Chip,
    Dma,
    ElementwiseEngine,
    Hbm,
    Launch,
    OnChipMemory,
    TensorEngine,
)

__all__ = ["CHIPS", "get_chip"]

KiB, GiB = 1024, 1024**3

# fmt: off
_EVERYWHERE = frozenset((
    "float32", "bfloat16", "float16", "tfloat32", "float8_e4m3", "float8_e5m2", "float8_e3m4",
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "bool",
))
# fmt: on
_16_BIT = ("bfloat16", "float16")

# [nkilib] charges 144 cycles for every Vector instruction; the interval of 64 is [isa].
_MIN_II = documented(64, "[isa] MIN_II")
_GPSIMD_START = documented(150, "[isa] GpSimd start")
_TENSOR_LATENCY = inferred(256, "128 rows and 128 columns of skew in the array")
_SEMAPHORE = chosen(60e-9, "[guide] puts it inside 'about 100 cycles' of a dependent instruction")
_WARM_UP = documented(3e-6, "[guide] half duty at first and below half use, full in about 3 us")
_TRANSPOSE_MODE = documented(2, "[guide] transpose mode: 2x for float32")
_EXPOSED_LOAD = calibrated(1.0, "LoadStationary in the vendor compiler's matmuls", "cal05")


def _psum() -> OnChipMemory:
    return OnChipMemory(  # [guide] the same on every generation
        partitions=128,
        bytes_per_partition=16 * KiB,
        usable_bytes_per_partition=16 * KiB,
        banks=8,
    )


_TRN1 = Chip(
    name="trn1",
    nc_version=2,
    physical_cores=2,
    lnc_choices=(1,),
    default_lnc=1,
    tensor_engine=TensorEngine(
        clock_hz=documented(2.8e9, "[guide]"),
        macs_per_pe_cycle={
            "bfloat16": 1,
            "float16": 1,
            "tfloat32": 1,
            "float8_e4m3": 1,
            "float8_e5m2": 1,
            "float8_e3m4": 1,
            "float32": 1 / 4,
        },
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=_TENSOR_LATENCY,
        stationary_columns_per_cycle=documented(4, "[guide] LoadStationary is up to 4x faster"),
        exposed_stationary_load=inferred(_EXPOSED_LOAD, "as on trn2"),
        moving_free_limit={"float32": 512},
    ),
    vector_engine=ElementwiseEngine(
        clock_hz=documented(1.12e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=documented(144, "[nkilib]"),
        fast_elements_per_lane_cycle={},
    ),
    scalar_engine=ElementwiseEngine(
        clock_hz=documented(1.4e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=measured(
            263, "[guide] 1-element dependent chain, 264 cycles apart"
        ),
        fast_elements_per_lane_cycle={},
        runs_tensor_scalar=False,  # [guide] from NC-v4
    ),
    gpsimd_engine=ElementwiseEngine(
        clock_hz=documented(1.4e9, "[guide]"),
        min_interval_cycles=_GPSIMD_START,
        pipeline_latency_cycles=chosen(144, "as the Vector engine"),
        fast_elements_per_lane_cycle={},
    ),
    sync_clock_hz=documented(1.4e9, "[guide]"),
    base_clock_hz=documented(1.4e9, "profile schema"),
    sbuf=OnChipMemory(
        partitions=128,
        bytes_per_partition=192 * KiB,
        usable_bytes_per_partition=180_224,  # [nkipy]
    ),
    psum=_psum(),
    hbm=Hbm(
        capacity_bytes=32 * GiB,
        stacks=2,
        bandwidth_bytes_per_s=documented(820e9, "[arch]"),
        read_efficiency=calibrated(0.856, "HBM reads", "cal11", "cal13"),
        write_efficiency=calibrated(0.617, "HBM writes and turnaround", "cal11", "cal13"),
    ),
    dma=Dma(
        # [dma]'s practical table says 17e9, but cal11 moved 294e9 bytes/s on 16 engines.
        engine_bytes_per_s=documented(27.2e9, "[dma] theoretical rate"),
        descriptor_min_s=inferred(12e-9, "as on trn2"),
        completion_write_s=inferred(160e-9, "as on trn2"),
        issue_interval_s=documented(0.86e-6, "[dma] efficiency figure"),
        start_latency_s=measured(0.77e-6, "[dma] screenshot"),
        completion_latency_s=inferred(0.53e-6, "[dma] 1.3 us fixed cost less the start"),
    ),
    launch=Launch(
        eager_dispatch_s=inferred(55e-6, "as on trn2"),
        graph_launch_s=inferred(86e-6, "as on trn2"),
        kernel_overhead_s=inferred(11e-6, "as on trn2"),
        semaphore_latency_s=_SEMAPHORE,
        activation_table_load_s=inferred(1.28e-6, "as on trn2"),
    ),
    native_dtypes=_EVERYWHERE,
    default_matmul_precision="bf16",
    vector_gpsimd_share_sbuf_port=True,
    vector_scalar_share_psum_port=True,
    wide_stride_bytes=16,  # [guide] an innermost stride beyond it halves the access rate
    marketing_peak_flops={"bfloat16": 190e12, "float32": 47.5e12, "float8": 190e12},  # [arch]
    default_system="trn1.32xlarge",
    rank_bytes_per_s=inferred(56e9, "2 ranks of a trn1, all_reduce of 1 GiB"),
)

_TRN2 = Chip(
    name="trn2",
    nc_version=3,
    physical_cores=8,
    lnc_choices=(1, 2),
    default_lnc=2,  # [lnc]
    tensor_engine=TensorEngine(
        clock_hz=documented(2.4e9, "[guide]"),
        macs_per_pe_cycle={
            "bfloat16": 1,
            "float16": 1,
            "tfloat32": 1,
            "float8_e4m3": 2,  # double_row
            "float8_e5m2": 2,
            "float8_e3m4": 1,
            "float32": 1 / 4,
        },
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=_TENSOR_LATENCY,
        stationary_columns_per_cycle=documented(4, "[guide] LoadStationary is up to 4x faster"),
        exposed_stationary_load=_EXPOSED_LOAD,
        moving_free_limit={"float32": 512},
        warm_up_s=_WARM_UP,
        float32_transpose_passes=_TRANSPOSE_MODE,
    ),
    vector_engine=ElementwiseEngine(
        clock_hz=documented(0.96e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=documented(144, "[nkilib]"),
        fast_elements_per_lane_cycle=dict.fromkeys(_16_BIT, 4),  # [guide] 512 a cycle
    ),
    scalar_engine=ElementwiseEngine(
        clock_hz=documented(1.2e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        # 0.291 us + N / 1.2 GHz for exp (cal09).
        pipeline_latency_cycles=measured(349, "[dma] overview screenshot, exp of 128 and of 4096"),
        fast_elements_per_lane_cycle={},
        runs_tensor_scalar=False,  # [guide] from NC-v4
    ),
    gpsimd_engine=ElementwiseEngine(
        clock_hz=documented(1.2e9, "[guide]"),
        min_interval_cycles=_GPSIMD_START,
        pipeline_latency_cycles=chosen(144, "as the Vector engine"),
        fast_elements_per_lane_cycle={},
    ),
    sync_clock_hz=documented(1.2e9, "[guide]"),
    base_clock_hz=documented(1.2e9, "profile schema"),
    sbuf=OnChipMemory(
        partitions=128,
        bytes_per_partition=224 * KiB,
        usable_bytes_per_partition=212_984,  # [nkipy]
    ),
    psum=_psum(),
    hbm=Hbm(
        capacity_bytes=96 * GiB,
        stacks=4,
        bandwidth_bytes_per_s=documented(2.9e12, "[arch]; [guide] rounds to 3e12"),
        read_efficiency=calibrated(0.88, "HBM reads", "cal21"),
        write_efficiency=calibrated(0.79, "HBM writes and turnaround", "cal19", "cal20"),
    ),
    dma=Dma(
        engine_bytes_per_s=documented(23e9, "[dma] practical table; a screenshot has 23.1e9"),
        descriptor_min_s=inferred(12e-9, "[dma] 8 runs of 256 bytes in 97 ns"),
        completion_write_s=calibrated(160e-9, "each engine's semaphore write", "cal02"),
        issue_interval_s=documented(0.86e-6, "[dma] efficiency figure"),
        start_latency_s=measured(0.77e-6, "[dma] screenshot, 0.74 to 0.80"),
        completion_latency_s=inferred(0.53e-6, "[dma] 1.3 us fixed cost less the start"),
    ),
    launch=Launch(
        eager_dispatch_s=measured(55e-6, "[xpu] 45 to 65 us an op"),
        # Two tables: 73 to 80 us where eager operators took 52, 95 to 103 where they took 64.
        graph_launch_s=measured(86e-6, "[xpu] 73 to 103 us a launch"),
        kernel_overhead_s=calibrated(11e-6, "start and end of one program", "cal08"),
        semaphore_latency_s=_SEMAPHORE,
        activation_table_load_s=measured(1.28e-6, "[dma] overview screenshot"),
    ),
    native_dtypes=_EVERYWHERE,
    default_matmul_precision="bf16",
    vector_gpsimd_share_sbuf_port=False,
    vector_scalar_share_psum_port=False,
    marketing_peak_flops={  # [arch]
        "bfloat16": 667e12,
        "float32": 181e12,
        "float8": 1299e12,
        "sparse": 2563e12,
    },
    default_system="trn2.48xlarge",
    rank_bytes_per_s=inferred(107e9, "4 ranks of a trn2, best of a sweep"),
)

_TRN3 = Chip(
    name="trn3",
    nc_version=4,
    physical_cores=8,
    lnc_choices=(1, 2),
    default_lnc=2,  # [lnc]
    tensor_engine=TensorEngine(
        clock_hz=documented(2.4e9, "[guide]"),
        macs_per_pe_cycle={
            "bfloat16": 1,
            "float16": 1,
            "tfloat32": 1,
            "float8_e4m3": 2,  # double_row
            "float8_e4m3fn": 2,
            "float8_e5m2": 2,
            "float8_e3m4": 1,
            "float32": 1 / 4,
            "mxfp8": 4,
            "mxfp4": 4,  # mapped to MXFP8 before the array [arch]
        },
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=_TENSOR_LATENCY,
        stationary_columns_per_cycle=documented(4, "[guide] LoadStationary is up to 4x faster"),
        exposed_stationary_load=calibrated(
            0.35, "[gemm] active time of the Tensor engine for each instruction", "gemm21"
        ),
        moving_free_limit={"float32": 4096, "bfloat16": 8192},
        warm_up_s=_WARM_UP,
        float32_transpose_passes=_TRANSPOSE_MODE,
        transposes_at_once=documented(2, "[guide] close to double on long chains of transposes"),
    ),
    vector_engine=ElementwiseEngine(
        clock_hz=documented(1.2e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=documented(144, "[nkilib]"),
        fast_elements_per_lane_cycle=dict.fromkeys(
            (*_16_BIT, "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e3m4"), 4
        ),  # [guide] 512 a cycle
        exponential_per_lane_cycle=documented(4, "[guide] 4x the Scalar engine's activation"),
        random_per_lane_cycle=documented(4, "[guide] XORWOW, 4 numbers a lane and cycle"),
    ),
    scalar_engine=ElementwiseEngine(
        clock_hz=documented(1.2e9, "[guide]"),
        min_interval_cycles=_MIN_II,
        pipeline_latency_cycles=inferred(349, "as on trn2"),
        fast_elements_per_lane_cycle=dict.fromkeys(
            (*_16_BIT, "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e3m4"), 2
        ),  # [guide] 256 a cycle
    ),
    gpsimd_engine=ElementwiseEngine(
        clock_hz=documented(1.2e9, "[guide]"),
        min_interval_cycles=_GPSIMD_START,
        pipeline_latency_cycles=chosen(144, "as the Vector engine"),
        fast_elements_per_lane_cycle={},
    ),
    sync_clock_hz=documented(1.2e9, "[guide]"),
    base_clock_hz=inferred(1.2e9, "as on trn2; the profile schema does not list trn3"),
    sbuf=OnChipMemory(
        partitions=128,
        bytes_per_partition=256 * KiB,
        usable_bytes_per_partition=245_752,  # [nkipy]
    ),
    psum=_psum(),
    hbm=Hbm(
        capacity_bytes=144 * GiB,
        stacks=4,
        bandwidth_bytes_per_s=documented(4.9e12, "[arch]; [guide] says 4.7e12"),
        read_efficiency=inferred(0.88, "as on trn2"),
        write_efficiency=inferred(0.79, "as on trn2"),
    ),
    dma=Dma(
        engine_bytes_per_s=documented(33e9, "[dma] practical table"),
        descriptor_min_s=inferred(12e-9, "as on trn2"),
        completion_write_s=inferred(160e-9, "as on trn2"),
        issue_interval_s=documented(0.86e-6, "[dma] efficiency figure"),
        start_latency_s=inferred(0.77e-6, "as on trn2"),
        completion_latency_s=inferred(0.53e-6, "as on trn2"),
    ),
    launch=Launch(
        eager_dispatch_s=inferred(55e-6, "as on trn2"),
        graph_launch_s=inferred(86e-6, "as on trn2; release notes claim 20 us less"),
        kernel_overhead_s=inferred(11e-6, "as on trn2"),
        semaphore_latency_s=_SEMAPHORE,
        activation_table_load_s=inferred(1.28e-6, "as on trn2"),
    ),
    native_dtypes=_EVERYWHERE | {"float8_e4m3fn", "float4_e2m1fn", "float8_e8m0fnu"},
    default_matmul_precision="mxfp8",
    vector_gpsimd_share_sbuf_port=False,
    vector_scalar_share_psum_port=False,
    marketing_peak_flops={  # [arch]
        "bfloat16": 671e12,
        "float32": 183e12,
        "mxfp8": 2517e12,
        "mxfp4": 2517e12,
        "sparse": 2517e12,
    },
    default_system="trn3-gen2",
    rank_bytes_per_s=inferred(107e9, "as on trn2"),
    basis="extrapolated from trn2",
)

T = TypeVar("T")


def _projection(value: T, source: str) -> T:
    """A part of a chip whose figures are all `projected`."""
    if isinstance(value, Figure):
        return projected(float(value), source)  # type: ignore[return-value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {f.name: _projection(getattr(value, f.name), source) for f in fields(value)}
    return replace(value, **parts)


# Announced [press]: six times the FP4, three times the FP8 and four times the HBM bandwidth of
# trn3, whose fastest FP8 and FP4 are the MX formats. FP4 at twice the rate of FP8 needs a datapath
# of its own. Cores, clocks, memories and all the rest are not public: they are trn3's.
_AS_TRN3 = _projection(_TRN3, "as on trn3")
_TRN4 = replace(
    _AS_TRN3,
    name="trn4",
    nc_version=5,
    tensor_engine=replace(
        _AS_TRN3.tensor_engine,
        macs_per_pe_cycle={
            **_TRN3.tensor_engine.macs_per_pe_cycle,
            "mxfp8": projected(12, "[press] 3x trn3 in FP8"),
            "mxfp4": projected(24, "[press] 6x trn3 in FP4"),
        },
    ),
    hbm=replace(
        _AS_TRN3.hbm, bandwidth_bytes_per_s=projected(4 * 4.9e12, "[press] 4x trn3, of 4.9e12")
    ),
    dma=replace(
        _AS_TRN3.dma, engine_bytes_per_s=projected(4 * 33e9, "keeps up with HBM, as on trn3")
    ),
    marketing_peak_flops={"mxfp8": 3 * 2517e12, "mxfp4": 6 * 2517e12},  # [press] times [arch]
    default_system="trn4-projected",
    basis="a projection of what is announced, from trn3, which is extrapolated from trn2",
)

CHIPS = MappingProxyType({chip.name: chip for chip in (_TRN1, _TRN2, _TRN3, _TRN4)})


def get_chip(name: str) -> Chip:
    """The chip called `name`. Raises Unsupported for an unknown one."""
    if name in CHIPS:
        return CHIPS[name]
    raise Unsupported(f"no chip is called {name!r}. Use {', '.join(CHIPS)}.")
