"""One thing that is wrong with a config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One wrong setting or broken rule: the dotted names of its settings and the line that the user reads."""

    keys: tuple[str, ...]
    line: str
    field: bool = False
    """One setting is wrong by itself; otherwise several do not go together."""

    def touches(self, broken: Iterable[tuple[str | int, ...]]) -> bool:
        """True if a setting of this finding is one of ``broken``, contains one, or lies inside one."""
        mine = [tuple(key.split(".")) for key in self.keys]
        theirs = [tuple(str(part) for part in path) for path in broken]
        return any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in theirs)
