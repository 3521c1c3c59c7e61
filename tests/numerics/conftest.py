"""The kernels of csrc/numerics without the extension, on one thread and the host's best level."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from numerics_library import ISAS, Numerics, build


@pytest.fixture(scope="session")
def library() -> Numerics:
    return Numerics(build())


@pytest.fixture
def numerics(library: Numerics) -> Iterator[Numerics]:
    library.limit_isa(len(ISAS) - 1)
    library.threads(1)
    yield library
    library.limit_isa(len(ISAS) - 1)


@pytest.fixture(params=range(len(ISAS)), ids=ISAS)
def each_isa(request: pytest.FixtureRequest, numerics: Numerics) -> Numerics:
    """The library at every level that the host has."""
    if request.param > numerics.host_isa:
        pytest.skip(f"this host has no {ISAS[request.param]}")
    numerics.limit_isa(request.param)
    return numerics


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """Overflow and NaN are what many of these tests are about."""
    with np.errstate(all="ignore"):
        yield
