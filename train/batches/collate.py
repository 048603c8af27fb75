"""Makes packed rows of a step into the tensors of one micro-batch, which train/batches/batch.py describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from data_prep.corpus.shards import Split
from data_prep.interop import IGNORE, labels_of
from data_prep.stream.stream import PackedRow
from train.attention.gather import uses_of
from train.batches.batch import Batch, Keys, Predicted


class _Fed(TypedDict):
    """The fields of a batch that do not depend on its layout."""

    uids: tuple[int, ...]
    tokens: int
    targets: int
    weight: float


@dataclass(frozen=True)
class _Sample:
    ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any] | None
    uid: int
    earlier: int
    """The sample of the micro-batch that computes its first tokens."""
    spared: int
    """Tokens that it leaves to ``earlier``; 0: none."""

    @property
    def weight(self) -> float:
        """The sum of the weights of its labels."""
        if self.weights is None:
            return float((self.labels != IGNORE).sum())
        return float(self.weights.sum(dtype=np.float64))

    @property
    def label_weights(self) -> np.ndarray[Any, Any]:
        """fp32, as long as ``ids``: 0 where there is no label."""
        return (self.labels != IGNORE).astype(np.float32) if self.weights is None else self.weights


def collate(
    rows: Sequence[PackedRow],
    splits: Sequence[Split],
    *,
    layout: Literal["flat", "padded"],
    pad_id: int,
) -> Batch:
    """Read the samples of ``rows`` and lay them out on the host. Empty rows become one pad token without a label."""
    samples = [
        _sample(splits[source], row, begun + earlier, tokens)
        for packed, begun in zip(rows, _begun(rows), strict=True)
        for (source, row), (earlier, tokens) in zip(packed.samples, packed.shared or repeat((0, 0)), strict=False)
    ]
    fed = _Fed(
        uids=tuple(sample.uid for sample in samples),
        tokens=sum(len(sample.ids) for sample in samples),
        targets=sum(int((sample.labels != IGNORE).sum()) for sample in samples),
        weight=sum(sample.weight for sample in samples),
    )
    if not samples:
        nothing = np.array([pad_id], dtype=np.int64)
        samples = [_Sample(nothing, np.full_like(nothing, IGNORE), None, 0, 0, 0)]
    build = _flat if layout == "flat" else _padded
    return build(samples, pad_id=pad_id, fed=fed)


def _begun(rows: Sequence[PackedRow]) -> list[int]:
    """The number of the first sample of each row among those of all rows."""
    sizes = [len(row.samples) for row in rows]
    return [sum(sizes[:number]) for number in range(len(sizes))]


def _sample(split: Split, row: int, earlier: int, spared: int) -> _Sample:
    ids, mask = split.tokens(row)
    labels, weights = labels_of(ids, mask), split.weights(row)
    return _Sample(
        ids=np.asarray(ids, dtype=np.int64),
        labels=labels,
        weights=None if weights is None else np.where(labels == IGNORE, np.float32(0.0), weights),
        uid=split.uid(row),
        earlier=earlier,
        spared=spared,
    )


@dataclass(frozen=True)
class _Segment:
    """What a sample computes in a flat row: its tokens from ``start`` on. It sees those before in other segments."""

    sample: _Sample
    start: int
    """Also the segment's first position, because ``start`` tokens of its sample precede it."""
    seen: tuple[range, ...]
    """Where all tokens of its sample are in the row, in their order; the last of them are its own."""

    def __len__(self) -> int:
        return len(self.sample.ids) - self.start

    def cut(self, of_sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return of_sample[self.start :]


def _segments(samples: Sequence[_Sample]) -> list[_Segment]:
    """The samples in order, each without what an earlier one computes."""
    segments: list[_Segment] = []
    at = 0
    for sample in samples:
        end = at + len(sample.ids) - sample.spared
        before = _first(segments[sample.earlier].seen, sample.spared) if sample.spared else ()
        segments.append(_Segment(sample, sample.spared, (*before, range(at, end))))
        at = end
    return segments


def _first(seen: Sequence[range], tokens: int) -> tuple[range, ...]:
    """The first ``tokens`` of ``seen``."""
    cut = list[range]()
    for each in seen:
        if tokens > 0:
            cut.append(each[:tokens])
        tokens -= len(each)
    return tuple(cut)


def _flat(samples: Sequence[_Sample], *, pad_id: int, fed: _Fed) -> Batch:
    segments = _segments(samples)
    bounds = _bounds([len(each) for each in segments])

    def tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64, copy=False))

    labels = np.concatenate([each.cut(each.sample.labels) for each in segments])
    places = np.nonzero(labels[1:] != IGNORE)[0] if fed["targets"] else np.zeros(1, dtype=np.int64)
    next_labels = np.append(labels[1:], IGNORE)
    weights = next_weights = None
    if any(each.weights is not None for each in samples):
        row = np.concatenate([each.cut(each.sample.label_weights) for each in segments])
        weights = torch.from_numpy(row)[None]
        next_weights = torch.from_numpy(np.append(row[1:], np.float32(0.0))[places])
    return Batch(
        input_ids=tensor(np.concatenate([each.cut(each.sample.ids) for each in segments]))[None],
        labels=tensor(labels)[None],
        position_ids=tensor(np.concatenate([np.arange(each.start, len(each.sample.ids)) for each in segments]))[None],
        attention_mask=None,
        segments=torch.from_numpy(bounds),
        longest=max(len(each) for each in segments),
        weights=weights,
        keys=_keys(segments, bounds) if any(each.start for each in segments) else None,
        predicted=Predicted(tensor(places), tensor(next_labels[places]), next_weights),
        **fed,
    )


def _keys(segments: Sequence[_Segment], bounds: np.ndarray[Any, Any]) -> Keys:
    """The keys of each segment: first those that it shares, then the segment's own."""
    lengths = [len(each.sample.ids) for each in segments]
    index = np.concatenate([np.arange(piece.start, piece.stop) for each in segments for piece in each.seen])
    bounds_k = torch.from_numpy(_bounds(lengths))
    return Keys(torch.from_numpy(index), bounds_k, max(lengths), uses_of(index, int(bounds[-1])))


def _bounds(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _padded(samples: Sequence[_Sample], *, pad_id: int, fed: _Fed) -> Batch:
    longest = max(len(each.ids) for each in samples)

    def fill(arrays: list[np.ndarray[Any, Any]], value: int, kind: type = np.int64) -> torch.Tensor:
        whole: np.ndarray[Any, Any] = np.full((len(arrays), longest), value, dtype=kind)
        for row, array in zip(whole, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(whole)

    mask = fill([np.ones(len(each.ids), dtype=np.int64) for each in samples], 0)
    weighted = any(each.weights is not None for each in samples)
    return Batch(
        input_ids=fill([each.ids for each in samples], pad_id),
        labels=fill([each.labels for each in samples], IGNORE),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        attention_mask=mask,
        segments=None,
        longest=longest,
        weights=fill([each.label_weights for each in samples], 0, np.float32) if weighted else None,
        **fed,
    )
