"""Where the turns of a conversation stand in the text of a chat template, as generation sees them.

The template is rendered with placeholders for the contents, and once more for every turn that is a target: up to the
turn, with the opening that generation gets, and up to its end. A turn begins where the opening ends, and it ends where
the text begins to depend on what follows. Both are positions in the rendering of the whole conversation, if the
template is a prefix function of its history. One that rewrites its history (strips earlier thoughts, moves the system
text) has no such positions for all turns at once, only for the last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.rows.conversation import Rejected
from data_prep.rows.turns import REASONING
from data_prep.templates.asking import Asking
from data_prep.tokenizer.renderer import Ask
from data_prep.tokenizer.tokenizer import Tokenizer

# Private-use characters: they survive `trim`, `upper` and the like, and no tokenizer's template contains them.
MARK = re.compile("\ue0f0([0-9]+)\ue0f1")
Turn = dict[str, Any]
"""A message as a template gets it."""
FOLLOWING: Turn = {"role": "user", "content": "\ue0f0999999999\ue0f1"}


def mark(number: int) -> str:
    """A placeholder."""
    return f"\ue0f0{number}\ue0f1"


@dataclass(frozen=True)
class Region:
    """The part of the text that a turn's generation would write."""

    turn: int
    start: int
    end: int
    """Behind the end of the turn that the template writes."""
    opening_differs: bool = False
    """Generation is opened with other text than stands before the turn here."""


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendering: text, or a placeholder."""

    text: str
    number: int = -1
    """Of the placeholder; -1: text."""
    turn: int = -1
    """The turn that it is a target of; -1: none."""


@dataclass(frozen=True)
class Outline:
    pieces: tuple[Piece, ...]
    eos_of: int = -1
    """The turn after which EOS has to be added, because the template ends no turn with a control token; -1: none."""
    opening_differs: bool = False


def outline(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: list[Any] | None, wanted: Sequence[int], *, turn_ends: bool
) -> Asking[Outline | None]:
    """The pieces of the rendering, with those that are targets; None if the template rewrites its history.

    ``wanted``: the turns that are targets. If only the last turn is, the rest may be anything. ``turn_ends``: whether
    an end of turn in plain text is a target.
    """
    whole = yield Ask(turns, tools)
    regions: list[Region] = []
    for turn in wanted:
        region = yield from _region(tokenizer, turns, tools, turn, whole)
        if region is None or (regions and region.start < regions[-1].end):
            return None
        regions.append(region)
    pieces: list[Piece] = []
    at, eos_of = 0, -1
    for region in regions:
        is_last = region.turn == len(turns) - 1
        spans, adds_eos = _targets(tokenizer, whole, region, is_last=is_last, turn_ends=turn_ends)
        eos_of = region.turn if adds_eos else eos_of
        for start, end in spans:
            pieces += [*_pieces(whole[at:start]), *_pieces(whole[start:end], region.turn)]
            at = end
    pieces += _pieces(whole[at:])
    return Outline(tuple(pieces), eos_of, any(region.opening_differs for region in regions))


def _targets(
    tokenizer: Tokenizer, whole: str, region: Region, *, is_last: bool, turn_ends: bool
) -> tuple[list[tuple[int, int]], bool]:
    """(stretches of ``whole`` that are targets, whether EOS has to be added behind it).

    A turn ends with its last control token; what follows is between the turns. Where none ends it, its end is plain
    text, and the last turn goes on to EOS: to the template's, or to one that is added.
    """
    closings = [found.end() for found in MARK.finditer(whole, region.start, region.end)]
    closing = closings[-1] if closings else region.end
    controls = [*tokenizer.find_controls(whole[: region.end], closings[-1] if closings else region.start)]
    if controls:
        return [(region.start, controls[-1].end())], False
    if not is_last:
        return [(region.start, region.end if turn_ends else closing)], False
    after = next(iter(tokenizer.find_controls(whole, closing)), None)
    has_eos = after is not None and after.group() == tokenizer.hf.eos_token
    end = after.start() if after is not None and has_eos else len(whole)
    spans = [(region.start, end if turn_ends else closing)]
    return [*spans, after.span()] if after is not None and has_eos else spans, not has_eos


def _region(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: list[Any] | None, turn: int, whole: str
) -> Asking[Region | None]:
    last = turn == len(turns) - 1
    start, differs = yield from _start(tokenizer, turns, tools, turn, whole)
    if start is None:
        return None
    if last:
        end = _common(tokenizer, whole, (yield from _with_following(turns, tools)))
        # What only ends the conversation is control tokens; else the turn itself reads otherwise when more follows.
        end = len(whole) if end <= start or tokenizer.without_controls(whole[end:]).strip() else end
    else:
        closed = yield Ask(turns[: turn + 1], tools)
        end = _common(tokenizer, whole, closed)
        if tokenizer.without_controls(closed[end:]).strip():  # the turn read otherwise when it was the last
            return None
    own = [found.end() for found in MARK.finditer(whole) if int(found[1]) // 2 == turn]
    if end <= start or any(not start <= each <= end for each in own):
        return None
    return Region(turn, start, end, differs)


def _start(
    tokenizer: Tokenizer, turns: Sequence[Turn], tools: list[Any] | None, turn: int, whole: str
) -> Asking[tuple[int | None, bool]]:
    """(where the turn begins, None if nowhere; whether generation is opened with other text)."""
    if turns[turn]["role"] != "assistant":
        found = whole.find(mark(2 * turn))
        return (None if found < 0 else found), False
    if turn == 0:  # no template takes an empty conversation
        return (yield from _behind_opening(tokenizer, turns[0], whole)), False
    opened = yield Ask(turns[:turn], tools, opening=True)
    if whole.startswith(opened):
        return len(opened), False
    start = _before_own_text(turns[turn], whole, _common(tokenizer, whole, opened))
    # Only the opening may differ, not what stands before it.
    earlier = any(int(found[1]) // 2 < turn for found in MARK.finditer(whole, start))
    return (None if earlier or MARK.search(opened, start) else start), True


def _before_own_text(turn: Turn, whole: str, start: int) -> int:
    """``start``, or where the turn's own text begins if that is before: real texts may begin as the opening goes on.

    <think> opens an answer, and the answer is <b>: its first character is not the opening's.
    """
    text = next((text.strip() for text in (turn.get(REASONING[0]), turn["content"]) if text and text.strip()), "")
    at = whole.rfind(text, 0, start + len(text)) if text else -1
    return at if 0 <= at < start < at + len(text) else start


def _behind_opening(tokenizer: Tokenizer, first: Turn, whole: str) -> Asking[int | None]:
    """Where the first turn begins: behind what opens an answer to a question, or else at its own text."""
    texts = [text for text in (first.get(REASONING[0]), first["content"]) if text]
    places = [at for text in texts if (at := whole.find(text.strip())) >= 0]
    if not places:
        return None
    question: Turn = {"role": "user", "content": "x"}
    closed = yield Ask([question])
    opened = yield Ask([question], opening=True)
    opening = opened[_common(tokenizer, closed, opened) :]
    at = whole.rfind(opening, 0, min(places)) if opening else -1
    return min(places) if at < 0 else at + len(opening)


def _with_following(turns: Sequence[Turn], tools: list[Any] | None) -> Asking[str]:
    try:
        return (yield Ask([*turns, FOLLOWING], tools))
    except Rejected:
        return ""


def _common(tokenizer: Tokenizer, one: str, other: str) -> int:
    """Length of the longest common start that cuts no control token and no placeholder in two."""
    length = len(os.path.commonprefix([one, other]))  # noqa: RUF071 - of characters, not of folders
    for text in (one, other):
        for found in (*tokenizer.find_controls(text), *MARK.finditer(text)):
            if found.start() < length < found.end():
                length = found.start()
    return length


def _pieces(text: str, turn: int = -1) -> Iterator[Piece]:
    at = 0
    for found in MARK.finditer(text):
        if found.start() > at:
            yield Piece(text[at : found.start()], turn=turn)
        yield Piece("", int(found[1]), turn)
        at = found.end()
    if at < len(text):
        yield Piece(text[at:], turn=turn)
