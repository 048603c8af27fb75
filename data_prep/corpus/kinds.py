"""Kinds of samples: the parts that a sample has, and the columns in which a corpus keeps them.

Whatever its kind, a sample is one list of token ids with a mask of targets, so the stream, the packer and the ledger
know lengths alone. Its kind says how the list divides:

    text            [text]                       one sequence, targets where the mask says
    pair            [prompt][chosen][rejected]   two answers to one prompt; each is read after the prompt
    source_target   [source][target]             an encoder reads the source, a decoder writes the target
    image_text      [text]                       with images: which ones, and at which tokens they begin

Preparation writes ``text``; the other kinds are written by ``SplitWriter`` for whoever makes such samples, and read by
the objectives and families that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conf.errors import ConfigError
from conf.schema import Objective
from conf.schema.fields import SampleKind


@dataclass(frozen=True)
class Kind:
    parts: tuple[str, ...]
    """Names of the parts, in the order of their tokens. The column ``parts`` says where each after the first begins."""
    columns: tuple[str, ...]
    """Columns of whole numbers beside the usual ones, each a list per sample."""
    wanted: str
    """Completes "samples of this kind need ...": for the message that refuses them."""


KINDS: dict[SampleKind, Kind] = {
    "text": Kind(("text",), (), "an objective over text, such as objective.kind=sft"),
    "pair": Kind(("prompt", "chosen", "rejected"), ("parts",), "an objective that compares two answers"),
    "source_target": Kind(("source", "target"), ("parts",), "an encoder-decoder family and an objective for it"),
    "image_text": Kind(("text",), ("images", "image_at"), "a family that reads images and an objective for it"),
}


def check_extras(kind: SampleKind, tokens: int, extras: dict[str, Any]) -> None:
    """Raise ValueError unless ``extras`` holds exactly the columns of ``kind``, and they fit a sample of ``tokens``."""
    wanted = KINDS[kind].columns
    if set(extras) != set(wanted):
        raise ValueError(f"a sample of kind {kind} has the columns {list(wanted)}, this one has {sorted(extras)}")
    if "parts" in wanted:
        _check_starts(extras["parts"], tokens, len(KINDS[kind].parts) - 1)
    if "image_at" in wanted:
        if len(extras["images"]) != len(extras["image_at"]):
            raise ValueError("images and image_at differ in length: every image begins at one token")
        _check_starts(extras["image_at"], tokens, len(extras["images"]))


def _check_starts(starts: Sequence[int], tokens: int, count: int) -> None:
    found = np.asarray(starts, np.int64)
    inside = len(found) == count and bool((found >= 0).all()) and bool((found < tokens).all())
    if not inside or not bool((np.diff(found) > 0).all()):
        raise ValueError(f"{list(starts)} are not {count} rising places among {tokens} tokens")


def check_kind(source: str, kind: SampleKind, objective: Objective) -> None:
    """Raise ConfigError where a source holds samples that the run's objective cannot use."""
    if kind != objective.FACTS.samples:
        raise ConfigError(
            f"data.sources.{source}: its samples are of kind {kind}, and objective.kind={objective.kind} uses samples "
            f"of kind {objective.FACTS.samples}; samples of kind {kind} need {KINDS[kind].wanted}"
        )
