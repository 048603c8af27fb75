"""A few kills and requests to stop of `make soak`, small enough for every change."""

from __future__ import annotations

import pytest

from tests.faults.plans import SHARES
from tests.faults.soak import Soak

pytestmark = pytest.mark.slow


def test_a_few_kills_and_requests_to_stop(soak: Soak) -> None:
    variants = soak.variants
    soak.variants = {"ZeRO 2, full": variants["ZeRO 2, full"]}
    try:
        kills, terms = soak.attack("SIGKILL", 6), soak.attack("SIGTERM", 3)
    finally:
        soak.variants = variants
    (killed,), (stopped,) = kills.values(), terms.values()
    assert killed.wrong == stopped.wrong == []
    assert (killed.attacks.total(), stopped.attacks.total(), stopped.endings.total()) == (6, 3, 3)
    assert sum(killed.of(kind) for kind in SHARES) == 6
