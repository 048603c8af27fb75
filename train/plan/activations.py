"""Activation memory of one micro-batch in closed form: the moments that can be the peak, from what each block keeps.

With a row sliced over ranks, attention keeps what came from them, which is as much as of whole heads over a slice; what
it gives back comes as a second tensor, the next layer's own input.

The workspace of flash attention's backward (an fp32 accumulator of the queries' gradient, keys and values expanded to
all heads: csrc/flash_attn/flash_api.cpp, mha_varlen_bwd) is at most 8 bytes per token and unit of query width; it comes
when the block's MLP, 8i bytes per token, is gone already, so that it is never the peak. Symbols:
train/families/parts/kept.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.whole_numbers import ceil_div
from train.families import Config, Kept, Shape, Work, family
from train.families.parts.kept import RMS_MOMENT, Norm
from train.plan.blocks import block_bytes, kept_by_block
from train.plan.chunks import padded

Recompute = Literal["none", "selective", "full"]

ELEMENT = {"bf16": 2, "fp32": 4}
LOSS_BYTES = 12
"""Per logit, in the backward of the loss: fp32 log-softmax, its incoming and its outgoing gradient
(aten._log_softmax_backward_data); the forward pass needs 10 (bf16 logits, fp32 copy, log-softmax)."""
INTEGERS = 40
"""Per token: ids, positions, labels, shifted labels and one index, int64."""


@dataclass(frozen=True)
class Moment:
    """Bytes alive at one moment that can be the peak of a micro-batch; weights and held gradients not counted."""

    activations: float
    """What blocks, norm and batch keep."""
    logits: float
    """Logits and everything made of them."""
    passing: float
    """Gradients on their way: of activations, and of the one weight whose turn it is."""

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.passing


def step_peaks(model: Config, shape: Shape, work: Work, recompute: Recompute) -> dict[str, Moment]:
    """The moments that can be the peak.

    ``loss``: the head in chunks, or the backward of the cross-entropy. ``head``: gradient of the head's weight.
    ``norm``: backward of the last norm. ``deepest``: backward of the last blocks. ``embedding``: gradient of the
    embedding.
    """
    kept = kept_by_block(model, shape, work)
    s, tokens, h, full = work.element, work.tokens, shape.hidden, work.adapted is None
    tables = full or work.tables
    around = tokens * (INTEGERS + kept.rotary)
    blocks = around + _kept_before(shape.layers, kept, work, h, recompute)
    table = float(s * shape.vocab * h) if tables else 0.0
    tied, norm = shape.tied, family(model["model_type"]).norm
    held = table if tied else 0.0  # the head's gradient waits for the embedding's
    after = tokens * h * _kept_by_last_norm(norm, s, full)
    before, passing = _deepest(shape, kept, work, recompute)
    return _head_moments(shape, work, blocks + after, table) | {
        "norm": Moment(blocks, 0.0, held + tokens * h * (4 * s if norm == "layer" else RMS_MOMENT)),
        "deepest": Moment(around + before, 0.0, held + passing),
        "embedding": Moment(around, 0.0, 3 * table if tied else table),
    }


def _head_moments(shape: Shape, work: Work, kept: float, table: float) -> dict[str, Moment]:
    """Loss and head, over ``kept``; ``table``: bytes of the head's gradient in the compute dtype, 0 if it has none."""
    s, h, selected = work.element, shape.hidden, float(work.element * work.logits * shape.hidden)
    if not work.chunk:
        kept += selected if table else 0.0
        whole = float(work.logits * shape.vocab)
        capped = s * whole if shape.capped else 0.0
        return {
            "loss": Moment(kept, LOSS_BYTES * whole + capped, 0.0),
            "head": Moment(kept, s * whole, selected + table),
        }
    chunks = ceil_div(work.logits, work.chunk)
    alive = float(s * work.chunk * padded(shape.vocab))  # the scores of a chunk, then their gradient
    exact = 2.0 * table if s == 2 and chunks > 1 else 0.0  # the sum over chunks, in fp32
    summed = exact + table
    # In the forward pass the last block's output, normalised, is still there beside the positions taken from it.
    frame = float(s * work.tokens * h) + 2 * selected
    return {
        "loss": Moment(kept + frame, alive, summed),
        "head": Moment(kept, 0.0, selected + summed),
    }


def _kept_by_last_norm(norm: Norm, element: int, full: bool) -> float:
    """Bytes per token and unit of width: its input, and what its weight's gradient needs."""
    if norm == "layer":
        return float(element)
    return 4.0 + full * (4.0 if norm == "rms32" else element)


def _recomputed(index: int, recompute: Recompute) -> bool:
    return recompute == "full" or (recompute == "selective" and index % 2 == 0)


def _kept_before(count: int, kept: Kept, work: Work, hidden: int, recompute: Recompute) -> float:
    """Bytes that the first ``count`` blocks keep after the forward pass."""
    whole, again = work.tokens * block_bytes(kept, work), work.tokens * work.element * hidden
    total = sum(again if _recomputed(index, recompute) else whole for index in range(count))
    frozen_start = work.adapted is not None and not work.tables and count > 0 and not _recomputed(0, recompute)
    return total - (work.tokens * kept.first if frozen_start else 0.0)


def _deepest(shape: Shape, kept: Kept, work: Work, recompute: Recompute) -> tuple[float, float]:
    """What is kept and what is passing at the worst moment in the backward of the last two blocks."""
    s, h, tokens = work.element, shape.hidden, work.tokens
    activation = tokens * s * (h + kept.products * kept.inner)
    projection = tokens * s * (h + kept.inner) + (s * h * kept.inner if work.adapted is None else 0)
    candidates = []
    for index in range(max(0, shape.layers - 2), shape.layers):
        own = block_bytes(kept, work) + (kept.entry if _recomputed(index, recompute) else 0)
        candidates.append(_kept_before(index, kept, work, h, recompute) + tokens * own)
    return max(candidates), max(activation, projection, tokens * kept.ending)
