"""One broken rule of a config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One broken rule: the settings it is about (dotted) and the line the user reads."""

    keys: tuple[str, ...]
    line: str

    def touches(self, broken: Iterable[tuple[str | int, ...]]) -> bool:
        """True if one of its settings is above, at or below one of ``broken``."""
        mine = [tuple(key.split(".")) for key in self.keys]
        theirs = [tuple(str(part) for part in path) for path in broken]
        return any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in theirs)
