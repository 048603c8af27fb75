"""Gradients of one global batch are the same, however it is cut up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import run_distributed
from tests.parity.matrix import Setting, errors, settings

ALLOWED = 1e-6


def check(world: int, chosen: list[Setting], folder: Path) -> None:
    for setting, (error, name, fed) in run_distributed(errors, world, chosen, str(folder))[0].items():
        assert fed, setting
        assert error <= ALLOWED, (setting, name, error)


@pytest.mark.parity
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_whole_matrix(world: int, tmp_path: Path) -> None:
    check(world, settings(world), tmp_path)


def test_a_slice_of_the_matrix(tmp_path: Path) -> None:
    check(2, settings(2)[::7], tmp_path)
