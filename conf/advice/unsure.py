"""What cannot be judged while a group has a wrong entry: the settings that the right entry would have brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conf.checks.finding import Finding

BROUGHT = {"data": ("data.sources", "data.stop"), "tuning": ("tuning",), "model": ()}
"""Group -> settings whose allowed keys depend on the entry."""


@dataclass(frozen=True)
class Unsure:
    """Settings of which nothing is said, and whether the rules that need two settings are silent."""

    keys: Sequence[str] = ()
    groups: Sequence[str] = ()
    """Sections of whose settings no rule is said."""
    everything: bool = False
    """No rule is said at all."""

    def covers(self, key: str) -> bool:
        return any(key == each or key.startswith(f"{each}.") for each in self.keys)

    def hides(self, finding: Finding) -> bool:
        if any(map(self.covers, finding.keys)):
            return True
        return not finding.field and (self.everything or finding.touches([(group,) for group in self.groups]))


def unsure(wrong: Iterable[str], sections: Iterable[str]) -> Unsure:
    """What is unsure while the groups ``wrong`` have a wrong entry; ``sections``: groups that set one section alone."""
    groups = list(wrong)
    everything = any(group not in sections for group in groups)
    named = BROUGHT if everything else groups
    return Unsure([key for group in named for key in BROUGHT.get(group, ())], groups, everything)
