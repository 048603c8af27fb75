"""Whether ``resume.allow`` names settings that there are."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from conf import walk
from conf.checks.finding import Finding
from conf.schema.resuming import pattern

if TYPE_CHECKING:
    from conf.schema import RunConfig


def allowed(cfg: RunConfig) -> Iterator[Finding]:
    known = list(walk.dotted_fields(type(cfg)))
    above = {key.rpartition(".")[0] for key in known}
    for key in cfg.resume.allow:
        parts = pattern(key).split(".")
        within = (".".join(parts[:end]) for end in range(1, len(parts)))
        if ".".join(parts) in known or any(each in known and each not in above for each in within):
            continue
        if parts[:3] == ["data", "sources", "NAME"] and len(parts) == 3:
            continue
        near = get_close_matches(key, known, n=1, cutoff=0.0)[0]
        yield Finding(("resume.allow",), f"resume.allow: there is no setting {key}; did you mean {near}?")
