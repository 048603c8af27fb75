"""Packed rows of the plan to the tensors of one micro-batch.

Shape suffixes: T tokens of all rows of a flat micro-batch, B rows, L longest row of a padded one, S segments,
K gathered keys.
Labels are aligned with the inputs (``labels[i]`` is the token at i); -100 marks what is not supervised and the first
token of every sample, so that nothing is ever predicted across a boundary. ``next_labels`` are shifted.

A row whose samples share a prefix holds it once, as a segment of its own before the first of them:

    row         [prefix][rest of a][rest of b][c]      queries: cu_seq_lens_q over the row
    keys        [prefix][prefix, rest of a][prefix, rest of b][c]      key_index gathers them, cu_seq_lens_k bounds them

Positions go on as if every sample were whole, so each token computes what it would alone; only attention looks twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch.nn import functional

from conf.errors import InternalError
from data_prep.interop import IGNORE, labels_of
from data_prep.shards import Split
from data_prep.stream import PackedRow
from train.attention.exchange import Exchange


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """int64, [1, T] flat or [B, L] padded."""
    labels: torch.Tensor
    """int64, same shape; -100 where nothing is learnt. A slice of a row has one more: of the token after it."""
    position_ids: torch.Tensor
    """int64, same shape; restart at 0 in every sample."""
    attention_mask: torch.Tensor | None
    """int64 [B, L], padded layout only: 1 where there is a token."""
    segments: torch.Tensor | None
    """int32 [S + 1], flat layout only: where each sample, prefix or rest of a sample begins, and T."""
    longest: int
    """Tokens of the longest of these."""
    uids: tuple[int, ...]
    """The samples in here, in row order: what was really fed, for the ledger."""
    tokens: int
    """Of the samples, whole."""
    targets: int
    keys: Keys | None = None
    """What the segments attend to, where that is not just themselves."""
    predicted: Predicted | None = None
    """Flat layout only: where the head is asked. Found here, on the host: asking a GPU would make it wait."""
    exchange: Exchange | None = None
    """The batch is a slice of a row, and the segments are the whole row's: attention gets it from the other ranks."""

    def __post_init__(self) -> None:
        if self.segments is not None and self.attention_mask is not None:
            # Even one of all ones: transformers then forgets that position ids restart, and samples see one another.
            raise InternalError("a packed row with an attention mask would mix its samples; give the bounds alone")

    @property
    def next_labels(self) -> torch.Tensor:
        """int64, the shape of ``input_ids``: what each position predicts, -100 where nothing."""
        missing = self.input_ids.shape[1] + 1 - self.labels.shape[1]
        return functional.pad(self.labels[:, 1:], (0, missing), value=IGNORE)


@dataclass(frozen=True)
class Keys:
    index: torch.Tensor
    """int64 [K]: places in the row, segment by segment; each begins with the prefix that it shares."""
    segments: torch.Tensor
    """int32 [S + 1]: where the keys of each segment begin, and K."""
    longest: int


@dataclass(frozen=True)
class Predicted:
    places: torch.Tensor
    """int64 [N]: places in the row that predict a supervised token; one place if there is none."""
    ids: torch.Tensor
    """int64 [N]: the tokens they predict; -100 if there is none."""


class _Fed(TypedDict):
    """What of a batch does not depend on its layout."""

    uids: tuple[int, ...]
    tokens: int
    targets: int


@dataclass(frozen=True)
class _Sample:
    ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    uid: int
    prefix: tuple[int, int, int]
    """(row of the micro-batch, source, prefix of the source): who computes it together."""
    prefix_len: int
    """0: the sample shares nothing."""


def collate(
    rows: Sequence[PackedRow],
    splits: Sequence[Split],
    *,
    layout: Literal["flat", "padded"],
    pad_id: int,
    device: torch.device,
) -> Batch:
    """Read the samples of ``rows`` and lay them out. A micro-batch of empty rows is one pad token without a label."""
    samples = [
        _sample(splits, source, row, number, packed.share_prefix)
        for number, packed in enumerate(rows)
        for source, row in packed.samples
    ]
    fed = _Fed(
        uids=tuple(sample.uid for sample in samples),
        tokens=sum(len(sample.ids) for sample in samples),
        targets=sum(int((sample.labels != IGNORE).sum()) for sample in samples),
    )
    if not samples:
        nothing = np.array([pad_id], dtype=np.int64)
        samples = [_Sample(nothing, np.full_like(nothing, IGNORE), 0, (0, 0, 0), 0)]
    build = _flat if layout == "flat" else _padded
    return build(samples, pad_id=pad_id, device=device, fed=fed)


def _sample(splits: Sequence[Split], source: int, row: int, packed_row: int, share: bool) -> _Sample:
    split = splits[source]
    ids, mask = split.tokens(row)
    index, shared = split.prefix(row) if share else (-1, 0)
    return _Sample(
        np.asarray(ids, dtype=np.int64), labels_of(ids, mask), split.uid(row), (packed_row, source, index), shared
    )


@dataclass(frozen=True)
class _Segment:
    """A stretch of a flat row that is computed together."""

    ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    after: int
    """Its first position: tokens of its sample before it."""
    seen: int
    """Where in the row those tokens are."""


def _segments(samples: Sequence[_Sample]) -> list[_Segment]:
    """Samples in order; a prefix stands before the first that has it, the others follow without it."""
    found: list[_Segment] = []
    places: dict[tuple[int, int, int], int] = {}
    at = 0
    for sample in samples:
        shared = sample.prefix_len
        if shared and sample.prefix not in places:
            places[sample.prefix] = at
            found.append(_Segment(sample.ids[:shared], sample.labels[:shared], 0, at))
            at += shared
        found.append(_Segment(sample.ids[shared:], sample.labels[shared:], shared, places.get(sample.prefix, at)))
        at += len(sample.ids) - shared
    return found


def _flat(samples: Sequence[_Sample], *, pad_id: int, device: torch.device, fed: _Fed) -> Batch:
    found = _segments(samples)
    lengths = [len(each.ids) for each in found]
    bounds = _bounds(lengths)
    positions = [np.arange(each.after, each.after + length) for each, length in zip(found, lengths, strict=True)]

    labels = np.concatenate([each.labels for each in found])
    places = np.nonzero(labels[1:] != IGNORE)[0] if fed["targets"] else np.zeros(1, dtype=np.int64)
    next_labels = np.append(labels[1:], IGNORE)

    def tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
        return on_device(array.astype(np.int64, copy=False), device)

    return Batch(
        input_ids=tensor(np.concatenate([each.ids for each in found]))[None],
        labels=tensor(labels)[None],
        position_ids=tensor(np.concatenate(positions))[None],
        attention_mask=None,
        segments=on_device(bounds, device),
        longest=max(lengths),
        keys=_keys(found, bounds, device) if any(each.after for each in found) else None,
        predicted=Predicted(tensor(places), tensor(next_labels[places])),
        **fed,
    )


def _keys(found: Sequence[_Segment], bounds: np.ndarray[Any, Any], device: torch.device) -> Keys:
    """Keys of each segment: those of its sample that stand elsewhere, then its own."""
    pieces: list[np.ndarray[Any, Any]] = []
    for each, start, end in zip(found, bounds.tolist(), bounds[1:].tolist(), strict=False):
        pieces += [np.arange(each.seen, each.seen + each.after), np.arange(start, end)]
    lengths = [each.after + len(each.ids) for each in found]
    index, segments = (on_device(each, device) for each in (np.concatenate(pieces), _bounds(lengths)))
    return Keys(index, segments, max(lengths))


def on_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """A copy on ``device``. To a GPU from pinned memory, so that this process goes on while it travels."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _bounds(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _padded(samples: Sequence[_Sample], *, pad_id: int, device: torch.device, fed: _Fed) -> Batch:
    longest = max(len(each.ids) for each in samples)

    def fill(arrays: list[np.ndarray[Any, Any]], value: int) -> torch.Tensor:
        whole = np.full((len(arrays), longest), value, dtype=np.int64)
        for row, array in zip(whole, arrays, strict=True):
            row[: len(array)] = array
        return on_device(whole, device)

    mask = fill([np.ones(len(each.ids), dtype=np.int64) for each in samples], 0)
    return Batch(
        input_ids=fill([each.ids for each in samples], pad_id),
        labels=fill([each.labels for each in samples], IGNORE),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        attention_mask=mask,
        segments=None,
        longest=longest,
        **fed,
    )


def forward_kwargs(batch: Batch) -> dict[str, Any]:
    """What the model is called with, besides ``logits_to_keep``. Packed rows carry their bounds, never a mask."""
    kwargs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    if batch.segments is not None:
        keys = batch.keys
        kwargs |= {
            "cu_seq_lens_q": batch.segments,
            "cu_seq_lens_k": batch.segments if keys is None else keys.segments,
            "max_length_q": batch.longest,
            "max_length_k": batch.longest if keys is None else keys.longest,
        }
        kwargs |= {} if keys is None else {"key_index": keys.index}
        kwargs |= {} if batch.exchange is None else {"exchange": batch.exchange}
    return kwargs
