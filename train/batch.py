"""Packed rows of the plan to the tensors of one micro-batch.

Shape suffixes: T tokens of all rows of a flat micro-batch, B rows, L longest row of a padded one, S segments.
Labels are aligned with the inputs (``labels[i]`` is the token at i); -100 marks what is not supervised and the first
token of every sample, so that nothing is ever predicted across a boundary. ``loss`` does the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from conf.errors import InternalError
from data_prep.shards import Split
from data_prep.stream import PackedRow

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """int64, [1, T] flat or [B, L] padded."""
    labels: torch.Tensor
    """int64, same shape; -100 where nothing is learnt."""
    position_ids: torch.Tensor
    """int64, same shape; restart at 0 in every sample."""
    attention_mask: torch.Tensor | None
    """int64 [B, L], padded layout only: 1 where there is a token."""
    segments: torch.Tensor | None
    """int32 [S + 1], flat layout only: where each sample begins, and T."""
    longest: int
    """Tokens of the longest sample."""
    uids: tuple[int, ...]
    """The samples in here, in row order: what was really fed, for the ledger."""
    tokens: int
    targets: int

    def __post_init__(self) -> None:
        if self.segments is not None and self.attention_mask is not None:
            # Even one of all ones: transformers then forgets that position ids restart, and samples see one another.
            raise InternalError("a packed row with an attention mask would mix its samples; give the bounds alone")


def collate(
    rows: Sequence[PackedRow],
    splits: Sequence[Split],
    *,
    layout: Literal["flat", "padded"],
    pad_id: int,
    device: torch.device,
) -> Batch:
    """Read the samples of ``rows`` and lay them out. A micro-batch of empty rows is one pad token without a label."""
    samples = [(splits[source], row) for packed in rows for source, row in packed.samples]
    pieces = [split.tokens(row) for split, row in samples]
    uids = tuple(split.uid(row) for split, row in samples)
    ids = [np.asarray(tokens, dtype=np.int64) for tokens, _ in pieces] or [np.array([pad_id], dtype=np.int64)]
    labels = [_labels(tokens, mask) for tokens, mask in pieces] or [np.array([IGNORE], dtype=np.int64)]
    counts = {"tokens": sum(len(tokens) for tokens, _ in pieces), "targets": sum(int((x >= 0).sum()) for x in labels)}
    build = _flat if layout == "flat" else _padded
    return build(ids, labels, pad_id=pad_id, device=device, uids=uids, counts=counts)


def _labels(tokens: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    labels = np.where(mask != 0, tokens, IGNORE).astype(np.int64)
    labels[0] = IGNORE
    return labels


def _flat(
    ids: list[np.ndarray[Any, Any]],
    labels: list[np.ndarray[Any, Any]],
    *,
    pad_id: int,
    device: torch.device,
    uids: tuple[int, ...],
    counts: dict[str, int],
) -> Batch:
    lengths = [len(each) for each in ids]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids))[None].to(device),
        labels=torch.from_numpy(np.concatenate(labels))[None].to(device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        attention_mask=None,
        segments=torch.from_numpy(bounds).to(device),
        longest=max(lengths),
        uids=uids,
        **counts,
    )


def _padded(
    ids: list[np.ndarray[Any, Any]],
    labels: list[np.ndarray[Any, Any]],
    *,
    pad_id: int,
    device: torch.device,
    uids: tuple[int, ...],
    counts: dict[str, int],
) -> Batch:
    longest = max(len(each) for each in ids)

    def fill(arrays: list[np.ndarray[Any, Any]], value: int) -> torch.Tensor:
        whole = np.full((len(arrays), longest), value, dtype=np.int64)
        for row, array in zip(whole, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(whole).to(device)

    mask = fill([np.ones(len(each), dtype=np.int64) for each in ids], 0)
    return Batch(
        input_ids=fill(ids, pad_id),
        labels=fill(labels, IGNORE),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        attention_mask=mask,
        segments=None,
        longest=longest,
        uids=uids,
        **counts,
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
        kwargs |= {
            "cu_seq_lens_q": batch.segments,
            "cu_seq_lens_k": batch.segments,
            "max_length_q": batch.longest,
            "max_length_k": batch.longest,
        }
    return kwargs
