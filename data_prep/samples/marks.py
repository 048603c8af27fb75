"""A sample with every token marked as a target or not, for the terminal and for HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from conf.safety.texts import for_html, for_terminal
from data_prep.tokenizer.tokenizer import Tokenizer

STYLE = """
.sample { white-space: pre-wrap; font: 13px/1.6 ui-monospace, monospace; border: 1px solid #ccc; padding: .8em;
  margin: .5em 0 1.5em }
.sample span { border-right: 1px solid #bbb6; color: #666 }
.sample .t { background: #d7f0d7; color: #000; border-bottom: 2px solid #2a7a2a }
.sample .c { font-style: italic; font-weight: bold }
"""


@dataclass(frozen=True)
class Piece:
    """One token, or the few that make up one character."""

    text: str
    ids: tuple[int, ...]
    supervised: bool
    control: bool


def pieces(ids: Sequence[int], mask: Sequence[int], tokenizer: Tokenizer) -> Iterator[Piece]:
    """The sample token by token, with the text each stands for."""
    controls = {tokenizer.control_id(name): name for name in tokenizer.controls}
    # In front of a token, so that decoders which strip a leading space have something else to strip.
    anchor = tokenizer.encode("a")[-1:]
    skip = len(tokenizer.decode(anchor))
    held: list[int] = []
    flags = [*mask, None]
    for place, token in enumerate(map(int, ids)):
        if token in controls:
            yield Piece(controls[token], (token,), bool(mask[place]), True)
            continue
        held.append(token)
        text = tokenizer.decode([*anchor, *held])[skip:]
        ends = flags[place + 1] != mask[place] or (place + 1 < len(ids) and int(ids[place + 1]) in controls)
        if "\ufffd" not in text or ends:
            yield Piece(text, tuple(held), bool(mask[place]), False)
            held = []


def to_terminal(ids: Sequence[int], mask: Sequence[int], tokenizer: Tokenizer) -> Text:
    """Tokens parted by a thin bar; targets in green and between « and », so that it reads without colour too."""
    shown = Text()
    for supervised, run in groupby(pieces(ids, mask, tokenizer), key=lambda piece: piece.supervised):
        style = "bold green" if supervised else "dim"
        shown.append("«" if supervised else "", style=style)
        for place, piece in enumerate(run):
            shown.append("│" if place else "", style="dim")
            shown.append(for_terminal(piece.text), style=f"{style} italic" if piece.control else style)
        shown.append("»" if supervised else "", style=style)
    return shown


def to_html(ids: Sequence[int], mask: Sequence[int], tokenizer: Tokenizer) -> str:
    """A <div class="sample"> with one <span> per token; hovering shows the id."""
    spans = []
    for piece in pieces(ids, mask, tokenizer):
        kinds = " ".join(name for name, on in (("t", piece.supervised), ("c", piece.control)) if on)
        title = ", ".join(map(str, piece.ids))
        spans.append(f'<span class="{kinds}" title="{title}">{for_html(piece.text)}</span>')
    return f'<div class="sample">{"".join(spans)}</div>'
