"""Super-NaturalInstructions: ``{"Definition", "id"?, "input", "output": [reference, ...]}``, one instance per row.

``task_file.py`` takes the instances out of a task's file and gives each the task's definition, which is a string in
the older schema and a list of one string in the newer, and the task's first example. The first reference is the target;
the others stay in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, text_field

TEMPLATE = "plain"
TURNS = "one"
KEYS = frozenset({"Definition", "input", "output"})
EXAMPLE = ("ex_input", "ex_output", "ex_explanation")


def read(row: Mapping[str, Any]) -> Conversation:
    """The definition as instruction, the input as its context, the first reference as the answer.

    A template set finds the task's example as ``ex_input``, ``ex_output`` and ``ex_explanation``, FLAN's own names.
    """
    return Conversation(
        (
            Message("user", _first(row, "Definition").strip(), context=text_field(row, "input")),
            Message("assistant", _first(row, "output")),
        ),
        fields={name: row[name] for name in EXAMPLE if isinstance(row.get(name), str)},
    )


def _first(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, list):
        return text_field(row, key)
    if not value:
        raise Rejected("missing_field", f"{key!r} is an empty list")
    return text_field({key: value[0]}, key)
