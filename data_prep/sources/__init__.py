"""Source formats: one module per format, which turns a record's values into a Conversation or rejects it by name.

The name of a module is the name of its format in the config. A module holds all that Corral knows of its format:

- ``read(values) -> Conversation``, which raises Rejected;
- ``TEMPLATE``: alpaca, plain or chat, for sources with ``template: auto``;
- ``TURNS``: ``one`` if every conversation is one question and one answer, ``many`` if it may have more turns;
- ``KEYS``: the keys of a row that ``read`` looks at. Others that hold something are counted and named in the report.

A new format is one new module here, and its name in the list ``Format`` (conf/schema/data.py).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from data_prep.rows.conversation import Conversation, Rejected, normalised
from data_prep.rows.record import Record, writable
from data_prep.rows.stage import Counts, Part
from data_prep.rows.turns import EMPTY

Reader = Callable[[dict[str, Any]], Conversation]


@dataclass(frozen=True)
class Format:
    """What a format's module says of it."""

    name: str
    read: Reader
    template: Literal["alpaca", "plain", "chat"]
    turns: Literal["one", "many"]
    keys: frozenset[str]


@dataclass(frozen=True)
class Read:
    """The stage that makes a conversation of a record's values. Rejects what the format's ``read`` does."""

    format: str
    fields: Mapping[str, str]
    """The record's name of every field that the format calls otherwise (see ``reader``)."""
    places: frozenset[str]
    """Fields of the conversation that come to stand in samples; others are dropped, because no rule should reject a
    record for text that no sample shows, such as the example of a whole task."""
    template: str
    """The source's template, which ``Encode`` has in the identity."""

    def __call__(self, record: Record, counts: Counts) -> Record:
        normalised.clear()
        conversation = reader(self.format, self.fields)(record.values)
        if unread := [*self._unread(record.values), *{*conversation.unread}]:
            counts.unread.update(map(writable, unread))
        if conversation.needs_chat and self.template != "chat":
            raise Rejected("needs_chat_template", f"its turns are messages, template {self.template!r} writes texts")
        if normalised:
            counts.normalised.update(normalised)
        if conversation.fields:
            used = {name: text for name, text in conversation.fields.items() if name in self.places}
            conversation = replace(conversation, fields=used)
        return replace(record, conversation=conversation)

    def _unread(self, values: Mapping[str, Any]) -> list[str]:
        """Keys that hold something and that neither the format nor a template set reads."""
        further = values.keys() - _read_keys(self.format, self.places, *self.fields.values())
        return [key for key in further if values[key] not in EMPTY]

    def identity(self) -> Part:
        fields = {"fields": dict(self.fields)} if self.fields else {}
        return {"source": {"format": self.format, **fields}}


def formats() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def format_of(name: str) -> Format:
    """The format ``name``, one of ``formats()``."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Format(name, module.read, module.TEMPLATE, module.TURNS, module.KEYS)


@cache
def _read_keys(name: str, places: frozenset[str], *fields: str) -> frozenset[str]:
    """Keys of a row that are read. ``fields``: the row's own names of fields; of a path, its first key."""
    return format_of(name).keys | places | {*fields} | {field.partition(".")[0] for field in fields}


def reader(name: str, fields: Mapping[str, str] | None = None) -> Reader:
    """``read`` of format ``name`` (one of ``formats()``), for records whose fields have other names.

    ``fields``: for a field of the format, its name in the record, or the path that leads to it.
    """
    read = format_of(name).read
    if not fields:
        return lambda row: read(_without_null_systems(row))
    places = fields.items()
    return lambda row: read(
        _without_null_systems(row | {ours: found for ours, place in places if (found := _at(row, place)) is not None})
    )


def _without_null_systems(row: dict[str, Any]) -> dict[str, Any]:
    """The row without system turns whose text is null: a table has them in every row, if one row has a system turn."""
    spoken = {
        name: [turn for turn in value if not _is_null_system(turn)]
        for name, value in row.items()
        if isinstance(value, list) and any(map(_is_null_system, value))
    }
    if not spoken:
        return row
    normalised.add("null_system_turn")
    return row | spoken


def _is_null_system(turn: Any) -> bool:
    if not isinstance(turn, dict):
        return False
    openai = turn.get("role") in ("system", "developer") and turn.get("content") is None
    return openai or (turn.get("from") == "system" and turn.get("value") is None)


def _at(row: Any, place: str) -> Any:
    """``row[place]``, or the value at the end of a path of keys and list positions (``instances.0.input``), or None."""
    if isinstance(row, dict) and place in row:
        return row[place]
    first, _, rest = place.partition(".")
    if isinstance(row, list) and first.isdecimal() and int(first) < len(row):
        found = row[int(first)]
    elif isinstance(row, dict) and first in row:
        found = row[first]
    else:
        return None
    return _at(found, rest) if rest else found
