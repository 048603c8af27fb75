"""What every template makes of a conversation: stretches of text, control tokens, and which of them are targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Segment:
    """A stretch of a sample: ``text`` to be tokenised as text, or, with ``control``, the name of one control token."""

    text: str
    weight: float
    """How much its tokens count as targets; 0: they are none."""
    control: bool = False

    @property
    def supervised(self) -> bool:
        return self.weight > 0


def written(text: str, weight: float, tokenizer: Tokenizer) -> Iterator[Segment]:
    """Segments of text that a template wrote itself: there, the name of a control token means the token."""
    while (name := tokenizer.find_control(text)) is not None:
        before, text = text.split(name, 1)
        token = tokenizer.controls[name]
        before = before.rstrip() if token.lstrip else before
        text = text.lstrip() if token.rstrip else text
        if before:
            yield Segment(before, weight)
        yield Segment(name, weight, control=True)
    if text:
        yield Segment(text, weight)
