"""What the turns of chat formats have in common: text, parts, tool calls, reasoning, and keys that no rule reads.

The public files spell one thing in several ways: OpenAI's ``tool_calls`` and older ``function_call``; DeepSeek's
``reasoning_content``, ``thinking`` of Anthropic and gpt-oss; content as text or as a list of parts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from conf.foreign.json_file import bounded
from data_prep.rows.conversation import Call, Part, Rejected, normalised, text_field, turn_weight

REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
WEIGHTS = ("weight", "supervised", "train")
EMPTY: tuple[Any, ...] = (None, "", [], {})


def unread(turn: Mapping[str, Any], read: Collection[str]) -> Iterator[str]:
    """Keys of ``turn`` that hold something and are not among ``read``."""
    for key, value in turn.items():
        if key not in read and value not in EMPTY:
            yield f"turn.{key}"


def content_of(turn: Mapping[str, Any], key: str, *, role: str, optional: bool) -> tuple[str, str, tuple[Part, ...]]:
    """(text, reasoning in it, its parts if one has a weight of its own) of ``turn[key]``.

    A tool's answer may be any JSON value, which stays JSON text. Raises Rejected.
    """
    value = turn.get(key)
    if isinstance(value, list) and _are_parts(value):
        return _joined(value)
    if role == "tool" and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False), "", ()
    if isinstance(value, list):
        raise Rejected("non_text_content", f"a part of {key!r} is no object with a 'type'")
    return text_field(turn, key, optional=optional), "", ()


def _are_parts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in value)


def _joined(value: list[Mapping[str, Any]]) -> tuple[str, str, tuple[Part, ...]]:
    parts: list[Part] = []
    thoughts: list[str] = []
    for part in value:
        if part["type"] == "text":
            parts.append(Part(text_field(part, "text"), turn_weight(part)))
        elif part["type"] in REASONING:
            thoughts.append(text_field(part, next((key for key in REASONING if part.get(key)), part["type"])))
        else:
            raise Rejected("non_text_content", f"a part of type {part['type']!r}; only 'text' can be trained on")
    own = any(part.weight is not None for part in parts)
    return "".join(part.text for part in parts), "\n".join(thoughts), tuple(parts) if own else ()


def reasoning_of(turn: Mapping[str, Any]) -> str:
    """The thought beside the content, whichever of its names it has; raises Rejected for two that differ."""
    found = {text_field(turn, key) for key in REASONING if turn.get(key)}
    if len(found) > 1:
        raise Rejected("two_reasonings", f"more than one of {', '.join(REASONING)}, and they differ")
    return found.pop() if found else ""


def calls_of(turn: Mapping[str, Any]) -> tuple[Call, ...]:
    """The turn's tool calls; raises Rejected (bad_tool_call)."""
    if turn.get("tool_calls") and turn.get("function_call"):
        raise Rejected("bad_tool_call", "the turn has tool_calls and function_call; keep one of them")
    calls = turn.get("tool_calls") or [call for call in (turn.get("function_call"),) if call]
    if not isinstance(calls, list):
        raise Rejected("bad_tool_call", f"'tool_calls' is {type(calls).__name__}, not a list")
    return tuple(call_of(call) for call in calls)


def call_of(call: Any) -> Call:
    """One call: OpenAI's ``{"id", "function": {"name", "arguments"}}``, or the function alone. Raises Rejected."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Rejected("bad_tool_call", "a tool call has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    name = call.get("id")
    return Call(function["name"], _arguments(arguments), str(name) if isinstance(name, str | int) else "")


def _arguments(arguments: Any) -> str:
    """JSON text of the arguments: they come as an object or, from OpenAI, as text; "" and null mean none."""
    if isinstance(arguments, str):
        try:
            arguments = bounded(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise Rejected("bad_tool_call", f"arguments are not JSON: {error}") from error
    else:
        given, arguments = arguments or {}, without_nulls(arguments or {})
        if arguments != given:
            normalised.add("null_argument")
    if not isinstance(arguments, dict):
        raise Rejected("bad_tool_call", f"arguments are {type(arguments).__name__}, not an object")
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise Rejected("bad_tool_call", "an argument is not a finite number") from error


def without_nulls(value: Any) -> Any:
    """Without the keys whose value is null: a table's common schema gives every struct the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
