"""What an attention backend can do, and what a run asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Attention:
    name: str
    """The backend: packed, flash2, flash3, flash4, sdpa; eager for a family that computes its own."""
    implementation: str
    """transformers' ``attn_implementation``."""
    layout: Literal["flat", "padded"]
    """flat: the rows of a micro-batch concatenated to [1, T] with the samples' bounds; padded: [B, L] with a mask."""
    shares: bool = False
    """Whether samples of a row may share the prefix they begin with (``data.share_prefix``)."""
    exchanges: bool = False
    """Whether ranks may share a row (``compute.sequence_parallel``)."""
    error: float = 0.0
    """Largest absolute error of the start-up self-test against an fp32 reference; 0 where none is needed."""


@dataclass(frozen=True)
class Asked:
    """What a run asks of its backend beside the model and the device."""

    rows: Literal["any", "padded"] = "any"
    """padded: the tuning method needs every sample in a padded row of its own."""
    share: bool = False
    """Samples of a row share prefixes (``data.share_prefix``)."""
    slices: int = 1
    """Ranks that share a row (``compute.sequence_parallel``)."""
