"""Which formats read some rows, with which ``fields``: judged by the names of their keys, then tried on the rows.

Pure functions of the rows' values, for messages and for whoever chooses a format from a file's first rows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.rows.conversation import Rejected
from data_prep.rows.tables import FIELDS
from data_prep.sources import format_of, reader

Row = Mapping[str, Any]
Template = Literal["auto", "chat"]

# Names in use for one part of a row, the most telling first.
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "user", "human", "inputs", "input", "q")
ANSWERS = ("output", "response", "completion", "answer", "answers", "target", "targets", "solution", "label",
           "assistant", "reply", "text", "a")  # fmt: skip
CONTEXTS = ("input", "context", "passage", "document", "article", "background")
SYSTEMS = ("system", "system_prompt")
CHOICES = ("choices", "options")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
PREFERENCES = ("chosen", "rejected")
MOST_KEYS = 12
"""Keys that a message lists."""


@dataclass(frozen=True)
class Fit:
    """A way to read the rows."""

    format: str
    fields: Mapping[str, str] = field(default_factory=dict)
    """As ``SourceConfig.fields``: the format's name of a part, and the rows' name of it."""
    template: Template = "auto"
    evidence: str = ""
    """Why it fits, for a reader: the keys, and how many of the rows were read."""
    share: float = 1.0
    """Share of the rows that the format reads."""

    def settings(self, source: str) -> list[str]:
        """Overrides that make source ``source`` read its rows so, quoted for a shell."""
        key = f"data.sources.{source}"
        words = [f"{key}.format={self.format}"]
        if self.fields:
            pairs = ", ".join(f"{ours}: {_flow(theirs)}" for ours, theirs in self.fields.items())
            words.append(f"{key}.fields={{{pairs}}}")
        words += [f"{key}.template={self.template}"] if self.template != "auto" else []
        return [shlex.quote(word) for word in words]


def detect(rows: Sequence[Row]) -> list[Fit]:
    """Ways to read ``rows``, the best first; none if no format reads any of them. See ``unreadable`` for why.

    A way that reads more of the rows is better; of those that read as many, one by the format's own names.
    """
    if not rows or unreadable(rows) is not None:
        return []
    fits = [tried for fit in _candidates(_common(rows)) if (tried := _try(fit, rows)) is not None]
    unique = {(fit.format, *fit.fields.items()): fit for fit in reversed(fits)}
    kept = [fit for fit in fits if unique[(fit.format, *fit.fields.items())] is fit]
    return sorted(kept, key=lambda fit: -fit.share)  # stable: candidates come the likeliest first


def unreadable(rows: Sequence[Row]) -> str | None:
    """Why no supervised format can read rows of this kind, as a sentence; None if their keys speak for no such kind."""
    known = _common(rows)
    if all(key in known for key in PREFERENCES):
        return (
            "the rows are preference pairs (chosen and rejected), which no supervised format reads; to train on the "
            "chosen answers alone, write them as prompt and completion"
        )
    if {"prompt", "completion", "label"} <= set(known) and isinstance(known["label"], bool):
        return (
            "the rows are single preferences (label says whether the completion is wanted), which no supervised format "
            "reads; to train on the wanted ones, use select={where: {label: 'True'}} and format=prompt_completion"
        )
    if set(known) == {FIELDS}:
        return (
            "the rows come from a .tsv file, which is read without a header; if its first line names the columns, "
            "name the file .csv: tabs are found there too"
        )
    if media := next((key for key in MEDIA if known.get(key) not in (None, "", [])), None):
        return f"the rows have a {media!r} each, and only text is trained on"
    if any(isinstance(known.get(key), list) for key in CHOICES) and isinstance(known.get("answer"), int):
        return (
            "the answer is a number that points to one of several choices; write it as text, with the choices under "
            "'options' (format=qa)"
        )
    if "input_ids" in known:
        return "the rows are token ids already; name the file that they were made from"
    if set(known) == {"text"}:
        return "the rows have one text each and no answer to train on; write them as prompt and completion"
    if wrapped := next((key for key, value in known.items() if _is_rows(value)), None):
        return (
            f"the rows stand in a list under {wrapped!r}; write the list as a .json array, "
            "or name the file .json if it is this one object"
        )
    return None


def keys_of(row: Row) -> str:
    """The keys of a row and the kind of each value, for a message."""
    shown = [f"{key} ({_kind(value)})" for key, value in list(row.items())[:MOST_KEYS]]
    more = f" and {len(row) - MOST_KEYS} more" if len(row) > MOST_KEYS else ""
    return ", ".join(shown) + more if row else "no keys"


def _common(rows: Sequence[Row]) -> dict[str, Any]:
    """A value of every key: of the first row that has one that is not null."""
    found: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            if found.get(key) is None:
                found[key] = value
    return found


def _candidates(known: Row) -> Iterator[Fit]:
    """Formats that the keys speak for, the likeliest first."""
    yield from _of_turns(known)
    if set(known) >= {"Definition", "input", "output"}:
        yield Fit("niv2", evidence="Definition, input and output are names of Super-NaturalInstructions")
    yield from _of_pairs(known)
    if FIELDS in known:
        yield Fit("flan_cot", evidence="lines of a .tsv file")


def _of_turns(known: Row) -> Iterator[Fit]:
    for key in sorted(known, key=_place(TURNS)):
        turn = _first_turn(known[key])
        if turn is None:
            continue
        if "role" in turn and ("content" in turn or "tool_calls" in turn):
            if key in ("prompt", "completion"):
                evidence = "prompt and completion are lists of messages, as in TRL"
                yield Fit("prompt_completion", template="chat", evidence=evidence)
                continue
            evidence = f"{key} is a list of turns with role and content"
            yield Fit("messages", _renamed(messages=key), "chat", evidence)
        if "from" in turn and "value" in turn:
            evidence = f"{key} is a list of turns with from and value"
            yield Fit("sharegpt", _renamed(conversations=key), "chat", evidence)


def _of_pairs(known: Row) -> Iterator[Fit]:
    """One question and one answer, by every pair of names; a context only where there is a place for it."""
    texts = {key for key, value in known.items() if isinstance(value, str | int | float)}
    if {"prompt", "completion"} <= texts:
        yield Fit("prompt_completion", evidence="prompt and completion are the format's own names")
    if texts >= {"inputs", "targets"} or texts >= {"inputs_pretokenized", "targets_pretokenized"}:
        yield Fit("p3", evidence="inputs and targets are P3's names")
    answers = [name for name in _named(ANSWERS, known) if name in texts]
    first = [path for name in _named(ANSWERS, known) if (path := _first_text(name, known[name]))]
    for question in (name for name in _named(QUESTIONS, known) if name in texts):
        for answer in (*answers, *first):
            context = next((name for name in _named(CONTEXTS, known) if name in texts - {question, answer}), None)
            if question != answer:
                yield from _pair(question, answer, context, known)


def _pair(question: str, answer: str, context: str | None, known: Row) -> Iterator[Fit]:
    named = ", ".join(each for each in (question, context, answer) if each)
    if question == "question" and answer == "answer" and (context is None or "options" in known):
        yield Fit("qa", evidence=f"{named} are the format's own names")
    alpaca = _renamed(instruction=question, output=answer, **({"input": context} if context else {}))
    plain = _renamed(prompt=question, completion=answer)
    evidence = f"{named} hold a question and its answer"
    system = next((name for name in _named(SYSTEMS, known) if isinstance(known[name], str)), None)
    if system is not None:
        alpaca |= _renamed(system=system)
        yield Fit("alpaca", alpaca, evidence=f"{evidence}, {system} a system text")
        return
    if question == "instruction" or context is not None:
        yield Fit("alpaca", alpaca, evidence=evidence)
        return
    yield Fit("prompt_completion", plain, evidence=evidence)
    yield Fit("alpaca", alpaca, evidence=evidence)


def _try(fit: Fit, rows: Sequence[Row]) -> Fit | None:
    """The fit with the share of rows that its format reads; None if that is none of them."""
    read = reader(fit.format, fit.fields)
    count = sum(_reads(read, row) for row in rows)
    unread = unread_keys(fit, rows)
    evidence = f"{fit.evidence}; {count} of {len(rows)} rows read"
    evidence += f"; not read: {', '.join(unread)}" if unread else ""
    return Fit(fit.format, fit.fields, fit.template, evidence, count / len(rows)) if count else None


def unread_keys(fit: Fit, rows: Sequence[Row]) -> list[str]:
    """Keys of the rows that hold something and that the format does not read with these fields."""
    read = format_of(fit.format).keys | {theirs.partition(".")[0] for theirs in fit.fields.values()}
    return [key for key, value in _common(rows).items() if key not in read and value not in (None, "", [], {})]


def _reads(read: Callable[[dict[str, Any]], object], row: Row) -> bool:
    try:
        read(dict(row))
    except Rejected:
        return False
    return True


def _named(names: Sequence[str], known: Row) -> list[str]:
    """Keys of the rows that are ``names`` but for case, the most telling first."""
    return sorted((key for key in known if key.lower() in names), key=lambda key: names.index(key.lower()))


def _renamed(**fields: str) -> dict[str, str]:
    """``fields`` without those that the rows call as the format does."""
    return {ours: theirs for ours, theirs in fields.items() if ours != theirs}


def _first_turn(value: Any) -> Mapping[str, Any] | None:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of what look like rows of their own."""
    first = _first_turn(value)
    return first is not None and bool(_named(QUESTIONS, first)) and bool(_named(ANSWERS, first))


def _first_text(key: str, value: Any) -> str | None:
    """The way to the first text of a list of answers: a plain list, or SQuAD's ``{"text": [...], ...}``."""
    place = key
    if isinstance(value, Mapping):
        place, value = f"{key}.text", value.get("text")
    return f"{place}.0" if isinstance(value, list) and value and isinstance(value[0], str) else None


def _place(names: Sequence[str]) -> Callable[[str], int]:
    return lambda key: names.index(key) if key in names else len(names)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {_kind(value[0])}" if value else "empty list"
    if isinstance(value, Mapping):
        return f"object of {', '.join(map(str, list(value)[:MOST_KEYS]))}"
    kinds = {str: "text", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


def _flow(name: str) -> str:
    """A field's name as a value in a Hydra dict."""
    return name if name.replace("_", "").replace(".", "").isalnum() else json.dumps(name)
