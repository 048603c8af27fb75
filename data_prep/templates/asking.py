"""Functions that need texts of a chat template, as generators: each yields what it asks and is sent the text.

Many of them run in step, so that what they ask at a time travels to the process that renders it together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from data_prep.rows.conversation import Rejected
from data_prep.tokenizer.renderer import Ask
from data_prep.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
Asking = Generator[Ask, str, T]
"""Yields what it asks of the template, gets the text or Rejected raised, and returns a T."""


def together(askers: Iterable[Asking[T]], tokenizer: Tokenizer) -> list[T | Rejected]:
    """What each returns, or the Rejected that it raises, in order."""
    running = list(askers)
    outcomes: list[Any] = [None] * len(running)
    said: dict[int, str | Rejected | None] = dict.fromkeys(range(len(running)))
    while said:
        asked: dict[int, Ask] = {}
        for place, text in said.items():
            try:
                each = running[place]
                asked[place] = each.throw(text) if isinstance(text, Rejected) else each.send(text)  # type: ignore[arg-type]
            except StopIteration as end:
                outcomes[place] = end.value
            except Rejected as rejected:
                outcomes[place] = rejected
        said = dict(zip(asked, tokenizer.render_all(list(asked.values())), strict=True))
    return outcomes


def alone(asker: Asking[T], tokenizer: Tokenizer) -> T:
    """What it returns; raises Rejected."""
    (outcome,) = together([asker], tokenizer)
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome
