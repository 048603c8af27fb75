"""Own sources never meet those of the default data entry, which nobody asked for.

A source is own if the user's yaml or command line gives it whole: with format and path, or with sources below it. If
there is one and no data entry was named, the default entry is left out with all it says, but for ``stop``. What the
user says of a source without giving it whole is a change of the entry's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_whole(source: Any) -> bool:
    """Whether a mapping could be a source by itself."""
    return isinstance(source, Mapping) and ("sources" in source or {"format", "path"} <= {*source})


def without_entry(data: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The section ``data`` without the default entry, and in words what of it is left out.

    ``data``: the entry with what the user says; ``own``: what the user says alone. Without an own source, ``data`` as
    it is.
    """
    entry, named = data.get("sources"), own.get("sources")
    if not isinstance(entry, Mapping) or not isinstance(named, Mapping) or not any(map(is_whole, named.values())):
        return dict(data), []
    left_out = [f"source {name}" for name in entry if name not in named]
    left_out += [f"{key}={value}" for key, value in data.items() if key not in own and key not in ("sources", "stop")]
    kept = {name: source if is_whole(source) else entry.get(name, source) for name, source in named.items()}
    stop = {"stop": data["stop"]} if "stop" in data and "stop" not in own else {}
    return {**own, **stop, "sources": kept}, left_out
