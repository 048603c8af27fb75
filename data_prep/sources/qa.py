"""A question with its answer, and options if it has any: ``{"question", "answer", "options"?: [text, ...], ...}``.

Further text fields (``context``, ``passage``, ...) are places that a template set may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, text_field, turn_weight
from data_prep.rows.turns import WEIGHTS

TEMPLATE = "plain"
TURNS = "one"
KEYS = frozenset({"question", "answer", "options", *WEIGHTS})
HEADER = "Options:"


def read(row: Mapping[str, Any]) -> Conversation:
    """The question with its options as lines below it, and the answer. Further texts are for template sets."""
    question = _with_options(text_field(row, "question").rstrip(), row.get("options"))
    answer = text_field(row, "answer")
    further = {name: value for name, value in row.items() if isinstance(value, str)}
    return Conversation(
        (Message("user", question), Message("assistant", answer, weight=turn_weight(row))),
        fields=further | {"question": question, "answer": answer},
    )


def _with_options(question: str, options: Any) -> str:
    if options is None or options == []:
        return question
    if not isinstance(options, list):
        raise Rejected("bad_options", "'options' is not a list of texts")
    texts = [" ".join(text_field({"options": each}, "options").split()) for each in options]
    if not all(texts):
        raise Rejected("bad_options", "one of the 'options' is blank")
    return "\n".join([question, HEADER, *(f"- {text}" for text in texts)])
