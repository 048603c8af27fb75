"""What a chat template has no place for goes where it has one; every such change has a name and is counted.

``tools_folded``      the list of tools      -> the end of the system text
``calls_folded``      a turn's tool calls    -> the end of its content, one JSON object per line
``reasoning_folded``  a turn's thought       -> the start of its content, between <think> and </think>
``system_folded``     the system turn        -> the start of the first user turn
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from conf.errors import BadData
from conf.foreign.json_file import bounded
from conf.foreign.reasons import LIMITS
from data_prep.rows.conversation import Call, Conversation, Message, Part, Rejected
from data_prep.tokenizer.tokenizer import Tokenizer

MARK = "\ue0f0probe\ue0f1"
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
WHY = {
    "tools_folded": "the chat template takes no tools, so their list stands at the end of the system text",
    "calls_folded": "the chat template takes no tool calls, so they stand in the answer, one JSON object per line",
    "reasoning_folded": "the chat template takes no reasoning, so it stands in the answer between <think> and </think>",
    "system_folded": "the chat template takes no system turn, so its text stands before the first question "
    "(data.fold_system=false rejects such rows)",
    "reasoning_left_out": "the chat template leaves the reasoning of turns out that are no targets, as in inference",
    "opening_differs": "the chat template opens a turn otherwise for generation than it writes the turn",
}


@dataclass(frozen=True)
class Abilities:
    """What a tokenizer's chat template writes out."""

    system: bool
    tools: bool
    calls: bool
    reasoning: bool


@lru_cache(maxsize=8)
def abilities(tokenizer: Tokenizer) -> Abilities:
    """Found by rendering one small conversation for each."""
    asked = {"role": "user", "content": "x"}
    said = {"role": "assistant", "content": "y"}
    system = {"role": "system", "content": MARK}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": MARK, "arguments": {"a": "b"}}}
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), MARK)

    def shows(messages: list[Any], tools: list[Any] | None = None) -> bool:
        try:
            return MARK in tokenizer.render(messages, tools=tools)
        except Rejected as rejected:
            if rejected.reason == LIMITS:
                raise BadData(
                    f"data.chat_template: the chat template of {tokenizer.name} cannot be used: for a conversation of "
                    f"a few words, {rejected.detail}; give another in data.chat_template, or another tokenizer"
                ) from rejected
            return False

    marked = {**TOOL, "function": {**TOOL["function"], "name": MARK}}  # type: ignore[dict-item]
    return Abilities(
        # Not only before a question that waits for its answer: some templates leave the text out once it is there.
        system=shows([system, asked]) and shows([system, asked, said]),
        tools=shows([asked], [marked]),
        calls=any(shows([asked, {**said, "content": text, "tool_calls": [call]}], [TOOL]) for text in ("", None)),
        reasoning=shows([asked, said | thought]),
    )


def fold(
    conversation: Conversation, tokenizer: Tokenizer, *, fold_system: bool
) -> tuple[tuple[Message, ...], list[Any] | None, list[str]]:
    """(messages, tools for the template, names of the changes); raises Rejected (bad_tools)."""
    able, messages, notes = abilities(tokenizer), conversation.messages, list[str]()
    tools = None if conversation.tools is None else _parsed(conversation.tools)
    if tools is not None and not able.tools:
        messages, tools = _with_system_text(messages, f"Tools:\n{conversation.tools}"), None
        notes.append("tools_folded")
    if not able.calls and any(each.calls for each in messages):
        messages = _changed(messages, lambda each: bool(each.calls), _calls_as_text)
        notes.append("calls_folded")
    if not able.reasoning and any(each.reasoning for each in messages):
        messages = _changed(messages, lambda each: bool(each.reasoning), reasoning_as_text)
        notes.append("reasoning_folded")
    if fold_system and not able.system and [each.role for each in messages[:2]] == ["system", "user"]:
        messages = (_with_system_before(messages[1], messages[0]), *messages[2:])
        notes.append("system_folded")
    return messages, tools, notes


def _parsed(text: str) -> list[Any]:
    try:
        tools = bounded(text)
    except ValueError as error:
        raise Rejected("bad_tools", f"tools are not JSON: {error}") from error
    if not isinstance(tools, list):
        raise Rejected("bad_tools", "tools are not a JSON list")
    return tools


def _changed(
    messages: Sequence[Message], chosen: Callable[[Message], bool], change: Callable[[Message], Message]
) -> tuple[Message, ...]:
    return tuple(change(each) if chosen(each) else each for each in messages)


def _with_system_text(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    if messages and messages[0].role == "system":
        first, more = messages[0], f"\n\n{text}" if messages[0].content else text
        parts = (*first.parts, Part(more, 0.0)) if first.parts else ()
        return (replace(first, content=first.content + more, parts=parts), *messages[1:])
    return (Message("system", text), *messages)


def _with_system_before(message: Message, system: Message) -> Message:
    if not system.text:
        return message
    text, parts = f"{system.text}\n\n", ()
    if system.is_target or message.is_target:  # each keeps its own weight
        parts = (Part(text, system.target_weight), *(message.parts or (Part(message.content),)))  # type: ignore[assignment]
    return replace(message, content=text + message.content, parts=parts)


def _calls_as_text(message: Message) -> Message:
    calls = "\n".join(map(call_text, message.calls))
    text = f"\n{calls}" if message.content else calls
    parts = (*message.parts, Part(text)) if message.parts else ()
    return replace(message, content=message.content + text, calls=(), parts=parts)


def call_text(call: Call) -> str:
    """A call as one JSON object."""
    return json.dumps({"name": call.name, "arguments": json.loads(call.arguments)}, ensure_ascii=False)


def reasoning_as_text(message: Message) -> Message:
    """The message with its thought in its content."""
    thought = f"<think>\n{message.reasoning}\n</think>\n\n"
    parts = (Part(thought), *message.parts) if message.parts else ()
    return replace(message, content=thought + message.content, reasoning="", parts=parts)
