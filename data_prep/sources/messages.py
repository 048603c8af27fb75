"""OpenAI messages: ``{"messages": [{"role", "content", "tool_calls"?, "reasoning_content"?, ...}, ...], "tools"?}``.

Older files have one ``function_call`` in a turn, ``functions`` beside the messages, and the role ``function``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, Role, text_field, tools_field, turn_weight
from data_prep.rows.turns import CALLS, REASONING, WEIGHTS, calls_of, content_of, reasoning_of, unread

TEMPLATE = "chat"
TURNS = "many"
KEYS = frozenset({"messages", "tools", "functions"})
TURN_KEYS = frozenset({"role", "content", "name", "tool_call_id", *CALLS, *REASONING, *WEIGHTS})
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read(row: Mapping[str, Any]) -> Conversation:
    """All turns in order, with their tool calls and reasoning."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise Rejected("missing_field", "'messages' is not a list with at least one message")
    messages = tuple(message_of(turn) for turn in turns)
    tools = tools_field(row.get("tools") or row.get("functions"))
    return Conversation(messages, tools, unread=tuple(key for turn in turns for key in unread(turn, TURN_KEYS)))


def message_of(turn: Any) -> Message:
    """One turn; raises Rejected."""
    if not isinstance(turn, Mapping):
        raise Rejected("non_mapping_turn", f"a message is {type(turn).__name__}")
    role = text_field(turn, "role")
    role = role if role in ROLES else role.lower()
    if role not in ROLES:
        raise Rejected("unknown_role", f"{role!r}; known: {', '.join(ROLES)}")
    calls, reasoning = calls_of(turn), reasoning_of(turn)
    empty = bool(calls) or ROLES[role] == "system"  # a table's system turn may be null
    content, thought, parts = content_of(turn, "content", role=ROLES[role], optional=empty)
    return Message(
        ROLES[role],
        content,
        weight=turn_weight(turn),
        reasoning=reasoning or thought,
        calls=calls,
        call_id=text_field(turn, "tool_call_id", optional=True),
        name=text_field(turn, "name", optional=True),
        parts=parts,
    )
