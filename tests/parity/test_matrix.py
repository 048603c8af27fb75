"""Gradients of one global batch are the same, however it is cut up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import run_distributed
from tests.parity.matrix import Found, Setting, errors, settings, settings_bf16

ALLOWED = {"fp32": 1e-6, "bf16": 2e-2}
"""Largest relative difference of a tensor. bf16 has 8 bits: 2**-8 = 4e-3 per rounding, and a gradient has several."""


def check(world: int, chosen: list[Setting], folder: Path) -> None:
    found = run_distributed(errors, world, chosen, str(folder))[0]
    for setting, each in found.items():
        assert each.fed, setting
        assert each.error <= ALLOWED[setting.dtype], (setting, each)
        if setting.dtype == "bf16":  # plain torch sums its gradients in bf16, DeepSpeed here in fp32
            assert each.whole <= each.plain, (setting, each)
    for dtype in ALLOWED:
        print(summary(world, dtype, [each for setting, each in found.items() if setting.dtype == dtype]))


def summary(world: int, dtype: str, found: list[Found]) -> str:
    """One line for docs/correctness.md; pytest shows it with -s."""
    if not found:
        return f"ranks {world} {dtype}: none"
    worst = max(found, key=lambda each: each.error)
    return (
        f"ranks {world} {dtype}: {len(found)} settings, worst tensor {worst.error:.1e} ({worst.tensor}), "
        f"whole gradient {max(each.whole for each in found):.1e}, plain torch {max(each.plain for each in found):.1e}"
    )


@pytest.mark.parity
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_whole_matrix(world: int, tmp_path: Path) -> None:
    check(world, settings(world) + settings_bf16(world), tmp_path)


def test_a_slice_of_the_matrix(tmp_path: Path) -> None:
    check(2, settings(2)[::7] + settings_bf16(2)[::5], tmp_path)
