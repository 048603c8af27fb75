"""Source formats: one module per format, ``read(row) -> Conversation`` or a named rejection, nothing else.

The module's name is the format's name in the config; adding a format means adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

from data_prep.conversation import Conversation

Reader = Callable[[dict[str, Any]], Conversation]


def formats() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def reader(name: str, fields: Mapping[str, str] | None = None) -> Reader:
    """The ``read`` function of format ``name`` (one of ``formats()``), for rows in which its fields have other names.

    ``fields``: the row's name of each field that the format calls otherwise, or where in the row it stands.
    """
    read = cast(Reader, importlib.import_module(f"{__name__}.{name}").read)
    if not fields:
        return read
    places = fields.items()
    return lambda row: read(row | {ours: found for ours, place in places if (found := _at(row, place)) is not None})


def _at(row: Any, place: str) -> Any:
    """``row[place]``, or what a path of keys and list positions leads to (``instances.0.input``); None: not there."""
    if isinstance(row, dict) and place in row:
        return row[place]
    first, _, rest = place.partition(".")
    if isinstance(row, list) and first.isdecimal() and int(first) < len(row):
        found = row[int(first)]
    elif isinstance(row, dict) and first in row:
        found = row[first]
    else:
        return None
    return _at(found, rest) if rest else found
