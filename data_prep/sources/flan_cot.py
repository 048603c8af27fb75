"""FLAN's chain-of-thought files: one line per row, ``question <tab> answer <tab> rationale``, no header.

Line breaks stand in the files as a backslash and an n (google-research/FLAN, flan/v2/cot_data).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, text_field
from data_prep.rows.tables import FIELDS

TEMPLATE = "plain"
TURNS = "one"
KEYS = frozenset({FIELDS})
COLUMNS = ("question", "answer", "rationale")
INSTRUCTION = "Answer the following question. Reason step by step first, then state the answer."


def read(row: Mapping[str, Any]) -> Conversation:
    """The question as context of a fixed instruction; the rationale, then "The answer is ...", as the answer.

    A template set finds ``question``, ``answer`` and ``chain_of_thought``, FLAN's own names.
    """
    question, answer, rationale = (_unescaped(field, name) for field, name in zip(_fields(row), COLUMNS, strict=True))
    return Conversation(
        (
            Message("user", INSTRUCTION, context=question),
            Message("assistant", f"{rationale}\nThe answer is {answer}."),
        ),
        fields={"question": question, "answer": answer, "chain_of_thought": rationale},
    )


def _fields(row: Mapping[str, Any]) -> list[str]:
    fields = row.get(FIELDS)
    if not isinstance(fields, list):
        raise Rejected("missing_field", "the row is not a line of a .tsv file")
    if len(fields) != len(COLUMNS):
        raise Rejected("wrong_field_count", f"{len(fields)} instead of {len(COLUMNS)}: {', '.join(COLUMNS)}")
    return [text_field({name: field}, name) for name, field in zip(COLUMNS, fields, strict=True)]


def _unescaped(field: str, name: str) -> str:
    text = field.replace("\\n", "\n").strip()
    if not text:
        raise Rejected("empty_field", f"{name!r} is empty")
    return text
