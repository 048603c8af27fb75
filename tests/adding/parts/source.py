"""Talk: ``{"ask", "reply", "sure"}``; how sure an answer is, from 0 to 1, is how much it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, text_field

TEMPLATE = "plain"
TURNS = "one"
KEYS = frozenset({"ask", "reply", "sure"})


def read(row: Mapping[str, Any]) -> Conversation:
    answer = Message("assistant", text_field(row, "reply"), weight=float(row.get("sure", 1.0)))
    return Conversation((Message("user", text_field(row, "ask")), answer))
