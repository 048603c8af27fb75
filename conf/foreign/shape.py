"""Whether what a stranger's JSON holds has the keys and types that somebody reads."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError


def fault_of(adapter: TypeAdapter[Any], value: Any) -> str:
    """The first thing that is wrong with ``value``, by its place; empty text if nothing is."""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(each)[:60] for each in first["loc"])
        return f"{place}: {first['msg']}"
    return ""
