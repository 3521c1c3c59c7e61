"""`trn-emu info`: chip, cores, memory, policy, host and versions."""

import os
import platform
from argparse import Namespace

import torch

from torch_trn_emu import current_precision, trn
from torch_trn_emu.settings import settings

from .environment import apply
from .output import Report, Table, show
from .record import versions

__all__ = ["execute"]


def execute(options: Namespace) -> int:
    apply(options)
    show(report(), as_json=options.json)
    return 0


def report() -> Report:
    trn.init()
    chosen, first = settings(), trn.get_device_properties(0)
    chip = chosen.chip
    sections: dict[str, dict[str, object]] = {
        "chip": {
            "name": first.name,
            "physical cores": chip.physical_cores,
            "physical cores per logical core": chosen.lnc,
            "devices": trn.device_count(),
            "HBM per device, GiB": first.total_memory / 2**30,
            "SBUF per device, MiB": first.sbuf_bytes / 2**20,
            "PSUM per device, MiB": first.psum_bytes / 2**20,
            "HBM bandwidth, TB/s": float(chip.hbm.bandwidth_bytes_per_s) / 1e12,
            "bfloat16 peak per device, TFLOP/s": chosen.lnc * chip.peak_flops("bfloat16") / 1e12,
        },
        "numerics": {
            "matmul policy": current_precision(),
            "stochastic rounding": chosen.stochastic_rounding,
        },
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
            "memory, GiB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        },
        "versions": dict(versions()),
    }
    tables = [
        Table(title=name, head=("", ""), rows=[(k, _text(v)) for k, v in section.items()])
        for name, section in sections.items()
    ]
    return Report(data=sections, tables=tables)


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
