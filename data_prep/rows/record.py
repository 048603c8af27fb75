"""A record on its way to a sample: a row of a raw file, and what the stages have made of it so far."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from data_prep.rows.conversation import Conversation

UNREAD = Conversation(())
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half characters; those from U+DC80 to U+DCFF stand for bytes that are not UTF-8."""


def writable(text: str) -> str:
    """``text`` as it can be written: bytes that are not UTF-8 as \\xNN, half characters as \\uNNNN."""
    return SURROGATE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


@dataclass(frozen=True)
class Record:
    """One row of one raw file. ``file``, ``row`` and ``text`` never change; each stage fills in a field of its own."""

    file: str
    """Its raw file as the MANIFEST names it: a path, or a data set of the hub with its commit."""
    row: int
    """Its place in the file from 0: element of the array, instance of the task, row of the table, or line (blank lines
    count, but are no records)."""
    text: str
    """Its JSON text, as the file has it."""
    position: int = 0
    """Bytes of the file (as stored) that were read when the record was complete; for progress."""
    values: dict[str, Any] = field(default_factory=dict)
    """The object that ``text`` holds; filled in by Parse."""
    task: str = ""
    """The task it belongs to; filled in by Select."""
    conversation: Conversation = UNREAD
    """Its messages; filled in by Read, changed by the stages between Read and Render."""
