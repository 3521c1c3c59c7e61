"""Where the chip's time went: `profile` records launches, and reports and exports them."""

from .modules import ModuleRow, SourceRow
from .recording import Launch, Recording
from .session import profile
from .verdict import Change, Verdict

__all__ = ["Change", "Launch", "ModuleRow", "Recording", "SourceRow", "Verdict", "profile"]
