"""What every source row becomes: messages with roles; and the named rejection that every stage may raise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

Role = Literal["system", "user", "assistant", "tool"]


class Rejected(Exception):
    """This row cannot become a sample. ``reason`` is counted, ``detail`` helps whoever reads the quarantine file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class Call:
    """The assistant's call of a tool."""

    name: str
    arguments: str = "{}"
    """JSON text of an object."""
    id: str = ""
    """The tool's answer names it as its ``call_id``."""


@dataclass(frozen=True)
class Part:
    """A stretch of a turn's content that has a weight of its own."""

    text: str
    weight: float | None = None
    """None: the turn's."""


@dataclass(frozen=True)
class Message:
    role: Role
    content: str
    context: str = ""
    """Text the instruction refers to (Alpaca's ``input``); templates decide where it stands."""
    weight: float | None = None
    """How much each token of this turn counts as a target; 0: none of them is one. None: by role, which means 1 for the
    assistant's and 0 for every other."""
    reasoning: str = ""
    """What the assistant thought before it spoke."""
    calls: tuple[Call, ...] = ()
    """Tools that the assistant calls at the end of its turn."""
    call_id: str = ""
    """Of a tool's turn: the call that it answers."""
    name: str = ""
    """Of a tool's turn: the tool; of any other: who speaks."""
    parts: tuple[Part, ...] = ()
    """The content cut into parts, where some part has a weight of its own; else nothing."""

    @property
    def target_weight(self) -> float:
        return float(self.role == "assistant") if self.weight is None else self.weight

    @property
    def is_target(self) -> bool:
        return self.target_weight > 0 or any(part.weight for part in self.parts)

    @property
    def text(self) -> str:
        """Content and context as one text, for templates that have one place for both."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    tools: str | None = None
    """JSON list of the tools the assistant may call, as text."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Parts of the row by name, for template sets, where a format knows more of them than question and answer."""
    unread: tuple[str, ...] = ()
    """Keys of its turns that hold something and that no rule reads."""
    needs_chat: bool = False
    """The row holds messages in a format whose rows are texts otherwise: only template chat writes what it means."""


def prompt_key(conversation: Conversation) -> int:
    """64-bit hash of everything before the first answer, lower-cased and with white space collapsed.

    Rows with the same key fall on the same side of the validation split, whatever their order or their file.
    """
    parts = []
    for message in conversation.messages:
        if message.role == "assistant":
            break
        parts.append(message.text)
    if not any(parts):  # it begins with an answer: all such rows would be one
        parts = [message.text for message in conversation.messages]
    return xxhash.xxh3_64_intdigest(" ".join("\n".join(parts).lower().split()).encode("utf-8", "surrogatepass"))


def content_key(conversation: Conversation) -> int:
    """64-bit hash of the whole conversation: two rows with the same key are exact duplicates."""
    parts = [conversation.tools or ""]
    for message in conversation.messages:
        parts += [message.role, str(message.is_target), message.content, message.context]
        parts += [] if message.target_weight in (0.0, 1.0) else [repr(message.target_weight)]
        parts += [repr(further) for further in _further(message) if further]
    # Length prefixes: ("ab", "c") and ("a", "bc") must differ.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _further(message: Message) -> tuple[object, ...]:
    """All of a message that most messages lack."""
    return message.reasoning, message.calls, message.call_id, message.name, message.parts


def texts_of(message: Message) -> Iterator[str]:
    """Every text of a message that a sample may contain."""
    yield message.content
    yield message.context
    if message.reasoning:
        yield message.reasoning
    for call in message.calls:
        yield call.name
        yield call.arguments
    if message.name or message.call_id:
        yield message.name
        yield message.call_id


normalised: set[str] = set()
"""What ``text_field`` and a format changed in the row that is being read, by name. The stage that reads empties it
before each row and counts it afterwards; a process reads one row at a time."""


def text_field(row: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    """The text ``row[key]``. A number or a boolean is written as JSON spells it, and noted in ``normalised``.

    Null, and NaN, which pandas writes for null, are absent. Optional: absent means "". Raises Rejected for an absent
    field, a list and an object.
    """
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is None or value != value:
        if optional:
            return ""
        if key in row:
            raise Rejected("missing_field", f"{key!r} is null")
        raise Rejected("missing_field", f"no {key!r} among {', '.join(sorted(map(str, row))) or 'no fields at all'}")
    if not isinstance(value, bool | int | float):
        raise Rejected("non_string_field", f"{key!r} is {type(value).__name__}")
    normalised.add("boolean_as_text" if isinstance(value, bool) else "number_as_text")
    return json.dumps(value)


def tools_field(value: Any) -> str | None:
    """A row's tools as JSON text: they come as a list, or as its text; none, "" and [] mean no tools."""
    if isinstance(value, str):
        return None if value.strip() in ("", "[]") else value
    return json.dumps(value, ensure_ascii=False) if value else None


def turn_weight(turn: Mapping[str, Any]) -> float | None:
    """A turn's own word against the role rule: ``supervised`` or ``train`` (true, false, 0, 1), or ``weight`` (a number
    from 0 on, as OpenAI's 0 and 1). None: it says nothing. Raises Rejected for another value."""
    for key in ("supervised", "train", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        number = value if isinstance(value, int | float) else -1.0  # True == 1 and False == 0
        if not 0 <= number < math.inf or (key != "weight" and number not in (0, 1)):
            allowed = "a number >= 0" if key == "weight" else "true, false, 0, 1"
            raise Rejected("bad_supervised_flag", f"{key!r} is {value!r}; allowed: {allowed}")
        return float(number)
    return None
