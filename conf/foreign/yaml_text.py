"""Yaml that others wrote: small, shallow, and without aliases that grow to more than a config has.

A kilobyte of yaml can stand for a billion values: ``&a [*b, *b]``, where b is made of two of c, and so on. Whoever
walks through the values, or writes them as JSON, walks through all of them.
"""

from __future__ import annotations

import math
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from conf.errors import ConfigError
from conf.foreign.limits import MOST_DEPTH, YAML_BYTES, YAML_VALUES

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def checked(path: Path) -> str:
    """The text of ``path``. Raises OSError, and ConfigError if it is no text, too large, too deep or grows."""
    refuse_growth(path)
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as yaml: {' '.join(str(error).split())}") from None


def refuse_growth(path: Path) -> None:
    """Raise ConfigError if the yaml in ``path`` is too large, too deep or grows. What is no yaml, its reader says."""
    content = path.read_bytes()
    try:
        problem = _problem(content) if len(content) <= YAML_BYTES else f"it is larger than {YAML_BYTES >> 20} MiB"
    except (yaml.YAMLError, ValueError):
        return
    if problem:
        raise ConfigError(f"{path}: cannot be read as yaml: {problem}; correct the file, or leave it out")


def _problem(content: bytes) -> str:
    """What is wrong with the size of the values; empty text if nothing is."""
    sizes: dict[str, float] = {}
    """Values that an anchor stands for, itself included; infinite while it is open."""
    open_nodes: list[tuple[str | None, float]] = []
    seen = 0.0
    for event in yaml.parse(content, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            seen += sizes.get(event.anchor, 0.0)
        elif isinstance(event, yaml.ScalarEvent):
            seen += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            seen += 1
            open_nodes.append((event.anchor, seen))
            if event.anchor:
                sizes[event.anchor] = math.inf
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = seen - before + 1
        if len(open_nodes) > MOST_DEPTH:
            return f"its values are nested more than {MOST_DEPTH} deep"
        if seen > YAML_VALUES:
            return f"it stands for more than {YAML_VALUES:,} values (aliases count as what they repeat)"
    return ""
