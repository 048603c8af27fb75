"""JSON that others wrote: objects in files, and lines of files that may hold anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.foreign.boundary import reading
from conf.foreign.limits import MIB, MOST_DEPTH, MOST_VALUES

TOO_DEEP = f"its values are nested more than {MOST_DEPTH} deep"


def bounded(text: str) -> Any:
    """The JSON value of ``text``. Raises ValueError, also for one that is nested too deeply or has too many parts."""
    opened = text.count("[") + text.count("{")
    if len(text) > MIB and opened + text.count(",") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if opened > MOST_DEPTH and isinstance(value, dict | list) and _is_deep(value):
        raise ValueError(TOO_DEEP)
    return value


def _is_deep(value: Any) -> bool:
    """Whether lists and objects stand more than MOST_DEPTH deep in one another."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def read_object(path: Path, cure: str, *, key: str = "") -> dict[str, Any]:
    """The JSON object in ``path``, which the setting ``key`` names. Raises what ``reading`` does."""
    with reading(f"{key}: {path}" if key else path, cure):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found


def object_in(text: str | bytes) -> dict[str, Any]:
    """The JSON object that ``text`` is; an empty one if it is none, as a line that a crash cut off."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def object_if_there(path: Path | None) -> dict[str, Any]:
    """The JSON object in ``path``; an empty one without the file, and for a broken one, which another reader names."""
    try:
        return object_in(path.read_bytes()) if path else {}
    except OSError:
        return {}
