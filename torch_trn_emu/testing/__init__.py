"""For tests of code that runs on trn. The pytest plugin is torch_trn_emu_pytest."""

from .assertion import assert_parity

__all__ = ["assert_parity"]
