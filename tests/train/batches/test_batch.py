"""Packed rows become tensors and a loss without losing, adding or leaking a token."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InternalError
from data_prep.interop import IGNORE
from data_prep.stream.stream import PackedRow
from train.batches.batch import forward_kwargs
from train.batches.collate import collate
from train.objectives.sft import token_nll_sum

CPU = torch.device("cpu")
VOCAB = 23


class FakeSplit:
    """Rows drawn from a seed: as much of data_prep.corpus.shards.Split as batches read."""

    def __init__(self, lengths: list[int], seed: int = 0, *, weighted: bool = False) -> None:
        generator = np.random.default_rng(seed)
        self.rows = len(lengths)
        self.lengths = np.array(lengths, dtype=np.int32)
        self._ids = [generator.integers(1, VOCAB, size=length, dtype=np.int32) for length in lengths]
        self._masks = [generator.integers(0, 2, size=length).astype(np.uint8) for length in lengths]
        drawn = [generator.uniform(0.1, 3.0, size=length).astype(np.float32) for length in lengths]
        self._weights = [own * mask for own, mask in zip(drawn, self._masks, strict=True)] if weighted else None

    def tokens(self, row: int) -> tuple[Any, Any]:
        return self._ids[row], self._masks[row]

    def weights(self, row: int) -> Any:
        return None if self._weights is None else self._weights[row]

    def uid(self, row: int) -> int:
        return 1000 + row

    def targets_of(self, row: int) -> int:
        return int(self._masks[row][1:].sum())


class PerTokenModel(torch.nn.Module):
    """Logits depend on the token and its position only, so that the right answer is a plain sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(VOCAB, VOCAB))
        self.places = torch.nn.Parameter(torch.randn(64, VOCAB))

    def forward(self, input_ids: Any, position_ids: Any, logits_to_keep: Any = None, **_: Any) -> Any:
        logits = self.table[input_ids] + self.places[position_ids]
        return SimpleNamespace(logits=logits if logits_to_keep is None else logits[:, logits_to_keep])


def by_hand(model: PerTokenModel, split: FakeSplit, rows: list[int]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids, mask = split.tokens(row)
        for place in range(1, len(ids)):
            if mask[place]:
                logits = model.table[int(ids[place - 1])] + model.places[place - 1]
                total = total - torch.log_softmax(logits, 0)[int(ids[place])]
    return total


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 5), st.data())
def test_every_layout_gives_the_loss_by_hand(lengths: list[int], seed: int, data: Any) -> None:
    split, model = FakeSplit(lengths, seed), PerTokenModel()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(lengths)), max_size=3)) | {0, len(lengths)})
    rows = [
        PackedRow(samples=tuple((0, row) for row in range(a, b)), tokens=sum(lengths[a:b]))
        for a, b in itertools.pairwise(cuts)
    ]
    alone = [PackedRow(samples=((0, row),), tokens=length) for row, length in enumerate(lengths)]
    wanted = by_hand(model, split, list(range(len(lengths))))
    for packed, layout, targets_only in [(rows, "flat", True), (rows, "flat", False), (alone, "padded", True)]:
        batch = collate(packed, [split], layout=layout, pad_id=0)  # type: ignore[arg-type,list-item]
        found = token_nll_sum(model, batch, targets_only=targets_only)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-5)
        assert batch.tokens == sum(lengths)
        assert batch.targets == sum(split.targets_of(row) for row in range(len(lengths)))
        assert batch.uids == tuple(1000 + row for row in range(len(lengths)))


def test_an_empty_micro_batch_costs_one_token_and_teaches_nothing() -> None:
    model = PerTokenModel()
    batch = collate([], [FakeSplit([3])], layout="flat", pad_id=0)  # type: ignore[list-item]
    loss = token_nll_sum(model, batch, targets_only=True)
    loss.backward()  # type: ignore[no-untyped-call]
    assert batch.tokens == batch.targets == 0
    assert float(loss.detach()) == 0.0
    assert model.table.grad is not None
    assert float(model.table.grad.abs().sum()) == 0.0


def test_bounds_and_positions_restart_with_every_sample() -> None:
    split = FakeSplit([3, 2, 4])
    rows = [PackedRow(samples=((0, 2), (0, 0)), tokens=7), PackedRow(samples=((0, 1),), tokens=2)]
    batch = collate(rows, [split], layout="flat", pad_id=0)  # type: ignore[list-item]
    kwargs = forward_kwargs(batch)
    assert kwargs["cu_seq_lens_q"].tolist() == [0, 4, 7, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert [int(batch.labels[0, place]) for place in (0, 4, 7)] == [IGNORE] * 3
    assert kwargs["attention_mask"] is None
    assert kwargs["use_cache"] is False


def test_a_packed_row_with_a_mask_is_refused() -> None:
    row = [PackedRow(samples=((0, 0),), tokens=3)]
    batch = collate(row, [FakeSplit([3])], layout="flat", pad_id=0)  # type: ignore[list-item]
    with pytest.raises(InternalError, match="would mix its samples"):
        dataclasses.replace(batch, attention_mask=torch.ones_like(batch.input_ids))
