"""The types that settings are made of: numbers with their bounds, names, and how strictly a section is judged."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

SampleKind = Literal["text", "pair", "source_target", "image_text"]
"""What a sample of a corpus consists of: one sequence; a prompt with two answers; a source and its target; a sequence
with images (data_prep/corpus/kinds.py)."""


@dataclasses.dataclass(frozen=True)
class Also:
    """A word that a setting may have in yaml and on the command line; a judged config holds what it stands for."""

    word: str


LARGEST = 2**53
"""No count of anything is larger, and every whole number up to it is the same in JSON, floats and 64 bits."""
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
"""Of a sequence or a vocabulary: forty times those of any published model."""
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Of something small inside a model."""
Rows = Annotated[int, Field(ge=1, le=10**7)]
"""Of a batch."""
Processes = Annotated[int, Field(ge=1, le=1024)]
"""On one machine."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
