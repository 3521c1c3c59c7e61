"""The scheduler, built alone where the package's extension lacks it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build_timing import build_timing

build_timing()
