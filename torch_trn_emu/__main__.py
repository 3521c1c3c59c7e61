"""`python -m torch_trn_emu`: the command line, as `trn-emu`."""

import sys

from torch_trn_emu_cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
