"""Weights of targets in every layout, and in slices of a row: each target keeps its own, and none is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.stream.stream import PackedRow
from tests.train.batches.test_batch import FakeSplit
from train.batches.batch import Batch
from train.batches.collate import collate
from train.batches.slices import sliced

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def batch_of(split: Any, layout: Any) -> Batch:
    samples = tuple((0, row) for row in range(split.rows))
    return collate([PackedRow(samples=samples)], [split], layout=layout, pad_id=0)


def by_hand(split: Any) -> list[tuple[int, float]]:
    """(token, weight) of every target that has a predecessor, in order."""
    found = []
    for row in range(split.rows):
        ids, mask = split.tokens(row)
        found += [(int(ids[at]), float(split.weights(row)[at])) for at in range(1, len(ids)) if mask[at]]
    return found


def targets_of(labels: torch.Tensor, weights: torch.Tensor | None) -> list[tuple[int, float]]:
    assert weights is not None
    assert bool(((weights > 0) == (labels != -100)).all())
    kept = labels != -100
    return list(zip(labels[kept].tolist(), weights[kept].tolist(), strict=True))


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_every_target_keeps_its_weight(lengths: list[int], seed: int) -> None:
    split = FakeSplit(lengths, seed, weighted=True)
    wanted = by_hand(split)
    for layout in ("flat", "padded"):
        batch = batch_of(split, layout)
        assert targets_of(batch.next_labels, batch.next_weights) == wanted
        assert batch.weight == pytest.approx(sum(weight for _, weight in wanted))
        if batch.predicted is not None and wanted:
            assert targets_of(batch.predicted.ids, batch.predicted.weights) == wanted


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, seed=st.integers(0, 9), count=st.integers(1, 4))
def test_slices_share_out_the_weights(lengths: list[int], seed: int, count: int) -> None:
    split = FakeSplit(lengths, seed, weighted=True)
    whole = batch_of(split, "flat")
    slices = [sliced(whole, index, count) for index in range(count)]
    found = [pair for each in slices for pair in targets_of(each.next_labels, each.next_weights)]
    asked = [pair for each in slices if each.targets for pair in targets_of(each.predicted.ids, each.predicted.weights)]  # type: ignore[union-attr]
    assert found == asked == by_hand(split)
    assert sum(each.weight for each in slices) == pytest.approx(whole.weight)
