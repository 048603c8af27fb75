"""What every source row becomes: messages with roles; and the named rejection that every stage may raise."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
class Message:
    role: Role
    content: str
    context: str = ""
    """Text the instruction refers to (Alpaca's ``input``); templates decide where it stands."""
    supervised: bool | None = None
    """Whether the tokens of this turn are targets. None: by role, which means the assistant's."""

    @property
    def is_target(self) -> bool:
        return self.role == "assistant" if self.supervised is None else self.supervised

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


def prompt_key(conversation: Conversation) -> int:
    """64-bit hash of everything before the first answer, lower-cased and with white space collapsed.

    Rows with the same key fall on the same side of the validation split, whatever their order or their file.
    """
    parts = []
    for message in conversation.messages:
        if message.role == "assistant":
            break
        parts.append(message.text)
    return xxhash.xxh3_64_intdigest(" ".join("\n".join(parts).lower().split()).encode("utf-8", "surrogatepass"))


def content_key(conversation: Conversation) -> int:
    """64-bit hash of the whole conversation: two rows with the same key are exact duplicates."""
    parts = [conversation.tools or ""]
    for message in conversation.messages:
        parts += [message.role, str(message.is_target), message.content, message.context]
    # Length prefixes: ("ab", "c") and ("a", "bc") must differ.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def text_field(row: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    """The string ``row[key]``; raises Rejected for a missing, null or non-string field. Optional: absent means ""."""
    value = row.get(key)
    if value is None:
        if optional:
            return ""
        raise Rejected("missing_field", f"no {key!r} among {', '.join(sorted(map(str, row))) or 'no fields at all'}")
    if not isinstance(value, str):
        raise Rejected("non_string_field", f"{key!r} is {type(value).__name__}")
    return value


def tools_field(value: Any) -> str | None:
    """A row's tools as JSON text: they come as a list, or as its text; none, "" and [] mean no tools."""
    if isinstance(value, str):
        return None if value.strip() in ("", "[]") else value
    return json.dumps(value, ensure_ascii=False) if value else None


def supervised_flag(turn: Mapping[str, Any]) -> bool | None:
    """A turn's own word against the role rule: ``supervised``, ``train`` (true/false) or OpenAI's ``weight`` (0/1)."""
    for key in ("supervised", "train", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True == 1 and False == 0
            raise Rejected("bad_supervised_flag", f"{key!r} is {value!r}; allowed: true, false, 0, 1")
        return bool(value)
    return None
