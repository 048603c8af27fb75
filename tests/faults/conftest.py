"""One warm process and its undisturbed runs, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.soak import Soak
from tests.faults.warm import Warm


@pytest.fixture(scope="session")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    with Warm() as warm:
        yield Soak(warm, tmp_path_factory.mktemp("soak"), seed=0)
