"""Patterns of modules and parameters: which names they fit, and what a pattern without any may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from conf.errors import ConfigError


def fits(name: str, pattern: str) -> bool:
    """True if ``pattern`` is the dotted ``name`` or its last parts; * ? [..] stand for what they do in a shell."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def holds(name: str, pattern: str) -> bool:
    """True if ``pattern`` fits the parameter ``name`` or a module that it lies in."""
    parts = name.split(".")
    return any(fits(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def above(names: Iterable[str]) -> list[str]:
    """``names`` and every module above them, once each."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)))


def refuse_unknown(key: str, unknown: Sequence[str], names: Iterable[str]) -> None:
    """Raise ConfigError naming each pattern of setting ``key`` that fits nothing, with the nearest of ``names``."""
    if not unknown:
        return
    known = list(names)
    problems = []
    for pattern in unknown:
        parts = pattern.count(".") + 1
        tails = dict.fromkeys(".".join(name.split(".")[-parts:]) for name in known)
        near = difflib.get_close_matches(pattern, tails, n=3, cutoff=0.4) or list(tails)[:3]
        problems.append(f"{key}: {pattern!r} fits nothing in this model; the nearest names are {', '.join(near)}")
    raise ConfigError(problems)
