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

    ``fields``: the row's name of each field that the format calls otherwise.
    """
    read = cast(Reader, importlib.import_module(f"{__name__}.{name}").read)
    if not fields:
        return read
    return lambda row: read(row | {ours: row[theirs] for ours, theirs in fields.items() if theirs in row})
