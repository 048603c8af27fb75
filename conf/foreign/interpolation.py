"""How large a config becomes once its interpolations are resolved: ``${b}${b}`` with ``b: ${c}${c}`` and so on doubles.

What stands inside ``${...}`` may be a key, a resolver's arguments or another interpolation, so every word there that is
a key counts: too much rather than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from conf import walk

WORD = re.compile(r"\.*[\w.\[\]-]+")


def size_of(config: dict[str, Any]) -> float:
    """Characters and values of ``config``, resolved, at most. A circle counts as nothing: it is told by its name."""
    return _Sizes(config).of((), config)


class _Sizes:
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._known: dict[tuple[str, ...], float] = {}

    def of(self, path: tuple[str, ...], value: Any) -> float:
        if path not in self._known:
            self._known[path] = 0.0
            self._known[path] = self._counted(path, value)
        return self._known[path]

    def _counted(self, path: tuple[str, ...], value: Any) -> float:
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            return 1 + sum(self.of((*path, str(key)), inner) for key, inner in pairs)
        if not isinstance(value, str):
            return 1.0
        return len(value) + sum(self.of(named, walk.value_at(self._config, named)) for named in _keys(path, value))


def _keys(path: tuple[str, ...], text: str) -> Iterator[tuple[str, ...]]:
    """The ways to what ``text``, which stands at ``path``, may name."""
    start = text.find("${")
    if start < 0:
        return
    for word in WORD.findall(text[start:]):
        name = word.lstrip(".")
        above = path[: len(path) - (len(word) - len(name))] if word.startswith(".") else ()
        yield (*above, *re.findall(r"[^.\[\]]+", name))
