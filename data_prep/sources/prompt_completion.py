"""Prompt and completion: ``{"prompt", "completion"}``, both texts, or lists of messages as in TRL.

Lists are of OpenAI messages (messages.py), beside ``tools`` if the row has them, and need template chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, Role, text_field, tools_field, turn_weight
from data_prep.rows.turns import WEIGHTS, unread
from data_prep.sources.messages import TURN_KEYS, message_of

TEMPLATE = "plain"
TURNS = "one"
KEYS = frozenset({"prompt", "completion", "tools", *WEIGHTS})


def read(row: Mapping[str, Any]) -> Conversation:
    """One question and one answer; of messages, all turns."""
    if isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list):
        turns = (*_turns(row, "prompt", "user"), *_turns(row, "completion", "assistant"))
        further = tuple(_unread(row))
        return Conversation(turns, tools_field(row.get("tools")), unread=further, needs_chat=True)
    prompt = text_field(row, "prompt")
    completion = text_field(row, "completion")
    return Conversation((Message("user", prompt), Message("assistant", completion, weight=turn_weight(row))))


def _unread(row: Mapping[str, Any]) -> Iterator[str]:
    for turns in (row.get("prompt"), row.get("completion")):
        for turn in turns if isinstance(turns, list) else ():
            yield from unread(turn, TURN_KEYS)


def _turns(row: Mapping[str, Any], key: str, role: Role) -> Iterator[Message]:
    """The messages of one side. As in TRL, the assistant's turns are targets in the completion, not in the prompt."""
    value = row.get(key)
    if not isinstance(value, list):
        yield Message(role, text_field(row, key), weight=turn_weight(row) if key == "completion" else None)
        return
    if not value:
        raise Rejected("missing_field", f"{key!r} is an empty list")
    for message in map(message_of, value):
        if message.role == "assistant" and message.weight is None:
            yield replace(message, weight=turn_weight(row) if key == "completion" else 0.0)
        else:
            yield message
