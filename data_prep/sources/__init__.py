"""Source formats: one module per format, ``read(row) -> Conversation`` or a named rejection, nothing else.

The module's name is the format's name in the config; adding a format means adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

from data_prep.conversation import Conversation

Reader = Callable[[Mapping[str, Any]], Conversation]


def formats() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def reader(name: str) -> Reader:
    """The ``read`` function of format ``name`` (one of ``formats()``)."""
    return cast(Reader, importlib.import_module(f"{__name__}.{name}").read)
