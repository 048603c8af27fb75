"""The known name that a mistyped one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that is most similar to ``word``. A longer name with a similar beginning counts as similar
    (alpca, alpaca_gpt2), but less so than one letter of a name of five that is wrong (turn_: turns, not turn_ends)."""

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, word.lower(), name.lower()).ratio()
        head = difflib.SequenceMatcher(None, word.lower(), name[: len(word) + 1].lower()).ratio()
        return max(whole, 0.85 * head)

    return max(known, key=likeness, default="")


def nearest_is_close(word: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(word, list(known), n=1, cutoff=0.75))
