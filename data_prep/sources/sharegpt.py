"""ShareGPT: ``{"conversations": [{"from", "value"}, ...], "system"?, "tools"?}``.

Role names follow the files found in the wild: FastChat's human/gpt, and LLaMA-Factory's function_call (the assistant
speaking to a tool: a target) and observation (the tool's answer: not a target).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.foreign.json_file import bounded
from data_prep.rows.conversation import Conversation, Message, Rejected, Role, text_field, tools_field, turn_weight
from data_prep.rows.turns import CALLS, REASONING, WEIGHTS, call_of, calls_of, content_of, reasoning_of, unread

TEMPLATE = "chat"
TURNS = "many"
KEYS = frozenset({"conversations", "system", "tools"})
TURN_KEYS = frozenset({"from", "value", "name", "tool_call_id", *CALLS, *REASONING, *WEIGHTS})
CALL = "function_call"
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    CALL: "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def read(row: Mapping[str, Any]) -> Conversation:
    """All turns in order; a row-level ``system`` becomes the first message."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise Rejected("missing_field", "'conversations' is not a list with at least one turn")
    messages = [_message(turn) for turn in turns]
    system = text_field(row, "system", optional=True)
    if system:
        messages.insert(0, Message("system", system))
    further = tuple(key for turn in turns for key in unread(turn, TURN_KEYS))
    return Conversation(tuple(messages), tools_field(row.get("tools")), unread=further)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Rejected("non_mapping_turn", f"a turn is {type(turn).__name__}")
    role = text_field(turn, "from")
    role = role if role in ROLES else role.lower()
    if role not in ROLES:
        raise Rejected("unknown_role", f"{role!r}; known: {', '.join(ROLES)}")
    calls, reasoning, weight = calls_of(turn), reasoning_of(turn), turn_weight(turn)
    empty = bool(calls) or ROLES[role] == "system"
    content, thought, parts = content_of(turn, "value", role=ROLES[role], optional=empty)
    if role == CALL:
        called = _calls(content)
        return Message("assistant", "", weight=weight, reasoning=reasoning or thought, calls=called)
    call_id, name = (text_field(turn, key, optional=True) for key in ("tool_call_id", "name"))
    return Message(ROLES[role], content, "", weight, reasoning or thought, calls, call_id, name, parts)


def _calls(value: str) -> tuple[Any, ...]:
    """The calls of a ``function_call`` turn, whose value is the JSON text of one call or of a list of them."""
    try:
        content = bounded(value)
    except ValueError as error:
        raise Rejected("bad_tool_call", f"the value of a {CALL} turn is not JSON: {error}") from error
    calls = content if isinstance(content, list) else [content]
    if not calls:
        raise Rejected("bad_tool_call", f"the value of a {CALL} turn is an empty list")
    return tuple(call_of(call) for call in calls)
