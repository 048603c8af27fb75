"""Gradients of one global batch are the same when ranks share its rows, each on a slice of the tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.parity.matrix import MODELS, ROWS, Setting
from tests.parity.test_matrix import check
from tests.tiny import PACKING_FAMILIES

KEY_HEADS = (2, 4, 1)
"""Of 4 query heads: fewer than 4 ranks that share a row, as many, one."""
SHAPES = list(itertools.product((1, 2, ROWS), (True, False)))
"""Micro-batch, shared prefixes. Rows have up to 40 tokens, so slices end inside samples and rarely come out even."""


def settings(world: int, slices: int) -> list[Setting]:
    """Stage x method x tied in full; micro-batch, prefixes, key heads and recomputation go round."""
    rest = itertools.cycle(zip(SHAPES * 3, KEY_HEADS * 6, ("none", "full", "selective", "none") * 5, strict=False))
    product = itertools.product((0, 2, 3), MODELS)
    return [
        Setting(
            world,
            micro,
            "exact",
            stage,
            method,
            tied,
            recompute,
            share,
            slices=slices,
            key_heads=heads,  # type: ignore[arg-type]
        )
        for (stage, (method, tied)), ((micro, share), heads, recompute) in zip(product, rest, strict=False)
    ]


def families(slices: int) -> list[Setting]:
    """Every family that packs: windows, soft caps, fused projections, learnt positions."""
    return [
        Setting(2, 2, "exact", 2, "full", False, "none", True, slices=slices, family=each) for each in PACKING_FAMILIES
    ]


@pytest.mark.slow
def test_two_ranks_share_every_row(tmp_path: Path) -> None:
    check(2, settings(2, 2)[::3] + families(2)[::3], tmp_path)


@pytest.mark.parity
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("world", "slices"), [(2, 2), (4, 2), (4, 4)])
def test_every_stage_and_method(world: int, slices: int, tmp_path: Path) -> None:
    check(world, settings(world, slices), tmp_path)


@pytest.mark.parity
@pytest.mark.timeout(900)
def test_every_family(tmp_path: Path) -> None:
    check(2, families(2), tmp_path)
