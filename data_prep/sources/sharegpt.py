"""ShareGPT: ``{"conversations": [{"from", "value"}, ...], "system"?, "tools"?}``.

Role names follow the files found in the wild: FastChat's human/gpt, and LLaMA-Factory's function_call (the assistant
speaking to a tool: a target) and observation (the tool's answer: not a target).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.conversation import Conversation, Message, Rejected, Role, supervised_flag, text_field, tools_field

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
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
    return Conversation(tuple(messages), tools_field(row.get("tools")))


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Rejected("non_mapping_turn", f"a turn is {type(turn).__name__}")
    role = text_field(turn, "from")
    if role not in ROLES:
        raise Rejected("unknown_role", f"{role!r}; known: {', '.join(ROLES)}")
    return Message(ROLES[role], text_field(turn, "value"), supervised=supervised_flag(turn))
