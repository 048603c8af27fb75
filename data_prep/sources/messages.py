"""OpenAI messages: ``{"messages": [{"role", "content", "tool_calls"?, "weight"?}, ...], "tools"?}``.

Older files have one ``function_call`` in a turn, ``functions`` beside the messages, and the role ``function``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_prep.conversation import Conversation, Message, Rejected, Role, supervised_flag, text_field, tools_field

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read(row: Mapping[str, Any]) -> Conversation:
    """All turns in order. A tool call stands in the content as JSON, one call per line, after the spoken text."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise Rejected("missing_field", "'messages' is not a list with at least one message")
    return Conversation(tuple(_message(turn) for turn in turns), tools_field(row.get("tools") or row.get("functions")))


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Rejected("non_mapping_turn", f"a message is {type(turn).__name__}")
    role = text_field(turn, "role")
    if role not in ROLES:
        raise Rejected("unknown_role", f"{role!r}; known: {', '.join(ROLES)}")
    calls = turn.get("tool_calls") or [call for call in (turn.get("function_call"),) if call]
    if not isinstance(calls, list):
        raise Rejected("bad_tool_call", f"'tool_calls' is {type(calls).__name__}, not a list")
    content = _content(turn, optional=bool(calls))
    lines = ([content] if content else []) + [_call(call) for call in calls]
    return Message(ROLES[role], "\n".join(lines), supervised=supervised_flag(turn))


def _content(turn: Mapping[str, Any], *, optional: bool) -> str:
    value = turn.get("content")
    if not isinstance(value, list):
        return text_field(turn, "content", optional=optional)
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Rejected("non_text_content", "only parts of type 'text' can be trained on")
    return "".join(text_field(part, "text") for part in value)


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping) or "name" not in function:
        raise Rejected("bad_tool_call", "a tool call has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI writes the arguments as JSON text
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise Rejected("bad_tool_call", f"arguments are not JSON: {error}") from error
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
