"""Makes packed rows of a step into the tensors of one micro-batch, which train/batches/batch.py describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    prefix: tuple[int, int, int]
    """(row of the micro-batch, source, prefix of the source): samples with equal values compute the prefix once."""
    prefix_len: int
    """0: the sample shares nothing."""

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
        _sample(splits, source, row, number, packed.share_prefix)
        for number, packed in enumerate(rows)
        for source, row in packed.samples
    ]
    fed = _Fed(
        uids=tuple(sample.uid for sample in samples),
        tokens=sum(len(sample.ids) for sample in samples),
        targets=sum(int((sample.labels != IGNORE).sum()) for sample in samples),
        weight=sum(sample.weight for sample in samples),
    )
    if not samples:
        nothing = np.array([pad_id], dtype=np.int64)
        samples = [_Sample(nothing, np.full_like(nothing, IGNORE), None, 0, (0, 0, 0), 0)]
    build = _flat if layout == "flat" else _padded
    return build(samples, pad_id=pad_id, fed=fed)


def _sample(splits: Sequence[Split], source: int, row: int, packed_row: int, share: bool) -> _Sample:
    split = splits[source]
    ids, mask = split.tokens(row)
    index, shared = split.prefix(row) if share else (-1, 0)
    labels, weights = labels_of(ids, mask), split.weights(row)
    return _Sample(
        ids=np.asarray(ids, dtype=np.int64),
        labels=labels,
        weights=None if weights is None else np.where(labels == IGNORE, np.float32(0.0), weights),
        uid=split.uid(row),
        prefix=(packed_row, source, index),
        prefix_len=shared,
    )


@dataclass(frozen=True)
class _Segment:
    """A segment of a flat row: the tokens ``start`` to ``stop`` of a sample."""

    sample: _Sample
    start: int
    """Also the segment's first position, because ``start`` tokens of its sample precede it."""
    stop: int
    seen: int
    """Index in the row where the tokens before ``start`` begin."""

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self, of_sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return of_sample[self.start : self.stop]


def _segments(samples: Sequence[_Sample]) -> list[_Segment]:
    """The samples in order. A shared prefix comes before the first sample that has it; the others omit it."""
    segments: list[_Segment] = []
    places: dict[tuple[int, int, int], int] = {}
    at = 0
    for sample in samples:
        shared, whole = sample.prefix_len, len(sample.ids)
        if shared and sample.prefix not in places:
            places[sample.prefix] = at
            segments.append(_Segment(sample, 0, shared, at))
            at += shared
        segments.append(_Segment(sample, shared, whole, places.get(sample.prefix, at)))
        at += whole - shared
    return segments


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
        position_ids=tensor(np.concatenate([np.arange(each.start, each.stop) for each in segments]))[None],
        attention_mask=None,
        segments=torch.from_numpy(bounds),
        longest=max(len(each) for each in segments),
        weights=weights,
        keys=_keys(segments, bounds) if any(each.start for each in segments) else None,
        predicted=Predicted(tensor(places), tensor(next_labels[places]), next_weights),
        **fed,
    )


def _keys(segments: Sequence[_Segment], bounds: np.ndarray[Any, Any]) -> Keys:
    """The keys of each segment: first those of the shared prefix, then the segment's own."""
    pieces: list[np.ndarray[Any, Any]] = []
    for each, start, end in zip(segments, bounds.tolist(), bounds[1:].tolist(), strict=False):
        pieces += [np.arange(each.seen, each.seen + each.start), np.arange(start, end)]
    lengths = [each.stop for each in segments]
    index = np.concatenate(pieces)
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
