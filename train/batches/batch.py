"""The tensors of one micro-batch.

Shape suffixes: T tokens of all rows of a flat micro-batch, B rows, L longest row of a padded one, S segments,
K gathered keys.
Labels are aligned with the inputs (``labels[i]`` is the token at i); -100 marks tokens that are not targets and the
first token of every sample, so that nothing is ever predicted across a boundary. ``next_labels`` are shifted.

What several samples of a row begin with is computed in the first of them; a segment is what a sample computes:

    row         [a][rest of b][rest of c][d]           queries: cu_seq_lens_q over the row
    keys        [a][of a, rest of b][of a, of b, rest of c][d]      key_index gathers them, cu_seq_lens_k bounds them

Positions count as if every sample were whole. So each token gets the same result as in its sample alone; only attention
reads the beginnings more than once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional

from conf.errors import InternalError
from data_prep.interop import IGNORE
from train.attention.exchange import Exchange
from train.attention.gather import Uses


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """int64, [1, T] flat or [B, L] padded."""
    labels: torch.Tensor
    """int64, same shape; -100 where a token is no target. A slice of a row also has the label of the next token."""
    position_ids: torch.Tensor
    """int64, same shape; positions restart at 0 in every sample."""
    attention_mask: torch.Tensor | None
    """int64 [B, L], padded layout only: 1 at tokens, 0 at padding."""
    segments: torch.Tensor | None
    """int32 [S + 1], flat layout only: the index where each sample, or its rest, begins, and T."""
    longest: int
    """Tokens of the longest segment."""
    uids: tuple[int, ...]
    """The samples of this batch, in row order. The ledger records them as fed."""
    tokens: int
    """Tokens of the samples; a shared prefix counts in every sample."""
    targets: int
    """Number of target tokens: those that are predicted and count in the loss."""
    weight: float
    """The sum of the targets' weights."""
    weights: torch.Tensor | None = None
    """fp32, the shape of ``labels``: the weight of each label, 0 where there is no label; None: all weights are 1."""
    keys: Keys | None = None
    """The keys that segments attend to; None: each segment attends to itself only."""
    predicted: Predicted | None = None
    """Flat layout only: the positions for the head. The host computes them, because reading them from a GPU waits."""
    exchange: Exchange | None = None
    """Set for a slice of a row: attention exchanges with the other ranks, and ``segments`` are the whole row's."""

    def __post_init__(self) -> None:
        if self.segments is not None and self.attention_mask is not None:
            # Even a mask of ones: transformers then ignores that position ids restart, and samples see one another.
            raise InternalError(
                "a packed batch has an attention mask, which would mix its samples; set segments or the mask, not both"
            )

    def to(self, device: torch.device) -> Batch:
        """This batch, which lies on the host, on ``device``."""
        return self if device.type == "cpu" else _moved(self, device)

    @property
    def next_labels(self) -> torch.Tensor:
        """int64, the shape of ``input_ids``: the token that each position predicts; -100: no target."""
        return self._shifted(self.labels, IGNORE)

    @property
    def next_weights(self) -> torch.Tensor | None:
        """fp32, the shape of ``input_ids``: the weight of the target at each position; None: all weights are 1."""
        return None if self.weights is None else self._shifted(self.weights, 0.0)

    def _shifted(self, of_tokens: torch.Tensor, value: float) -> torch.Tensor:
        missing = self.input_ids.shape[1] + 1 - of_tokens.shape[1]
        return functional.pad(of_tokens[:, 1:], (0, missing), value=value)


@dataclass(frozen=True)
class Keys:
    index: torch.Tensor
    """int64 [K]: indices into the row, segment by segment; a segment's keys begin with the prefix that it shares."""
    segments: torch.Tensor
    """int32 [S + 1]: the index where the keys of each segment begin, and K."""
    longest: int
    uses: Uses
    """Where ``index`` uses each token of the row, for the backward pass of the gather."""


@dataclass(frozen=True)
class Predicted:
    places: torch.Tensor
    """int64 [N]: positions in the row that predict a target; without targets, one position."""
    ids: torch.Tensor
    """int64 [N]: the targets that they predict; without targets, -100."""
    weights: torch.Tensor | None = None
    """fp32 [N]: the weight of each target; None: all weights are 1."""


def _moved(part: Any, device: torch.device) -> Any:
    """``part``, its tensors on ``device``. A GPU copies from pinned memory, so that this process need not wait."""
    match part:
        case torch.Tensor():
            return part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device)
        case Batch() | Keys() | Predicted():
            return replace(part, **{each.name: _moved(getattr(part, each.name), device) for each in fields(part)})
        case Uses():
            return Uses(*(_moved(each, device) for each in part))
        case _:
            return part


def forward_kwargs(batch: Batch) -> dict[str, Any]:
    """The model's keyword arguments, except ``logits_to_keep``. Packed rows pass their bounds, never a mask."""
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
        kwargs |= {} if keys is None else {"key_index": keys.index, "key_uses": keys.uses}
        kwargs |= {} if batch.exchange is None else {"exchange": batch.exchange}
    return kwargs
