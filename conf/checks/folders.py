"""Whether the settings that name folders name one that can be made, and that a command line can name again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conf import walk

LONGEST_PART, LONGEST = 255, 3800
"""Bytes of a name and of a path on Linux; below a folder, files still need some of the 4,096."""
NAMED = ("run_dir", "data.prepared", "data.cache", "checkpoint.copy_to")


def unusable(plain: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about each setting of a plain, resolved config whose folder cannot be."""
    for key in (*NAMED, "name"):
        text = walk.value_at(plain, key.split("."))
        if isinstance(text, str) and (why := fault(text)):
            yield f"{key}: {why}"


def fault(text: str) -> str:
    """What is wrong with the name of a folder, and what to do; empty text if nothing is."""
    if not text.strip():
        return "empty; name a folder, such as outputs/mine"
    if not text.isprintable():
        return f"{text!r} holds characters that cannot be shown; write it without them"
    if text.startswith("-"):
        return f"{text} begins with a dash, so commands would take it for an option; write ./{text}"
    long = next((part for part in text.split("/") if len(part.encode()) > LONGEST_PART), "")
    if long or len(text.encode()) > LONGEST:
        part = long or text
        most = LONGEST_PART if long else LONGEST
        return f"{part[:40]}... has {len(part.encode())} bytes, and a file system takes {most}; choose a shorter name"
    return ""
