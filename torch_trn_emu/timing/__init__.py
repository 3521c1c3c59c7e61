"""Timing: a Program and a chip give a Run, by the event-driven scheduler in csrc/timing.

run = price(program, get_chip("trn2"))
run.total_s, run.engine_busy_s(Engine.TENSOR)
"""

from .lanes import Span, lanes
from .price import price
from .retired import Record, Retired, Run

__all__ = ["Record", "Retired", "Run", "Span", "lanes", "price"]
