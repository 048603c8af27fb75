"""A question with its answer, and options if it has any: ``{"question", "answer", "options"?: [text, ...], ...}``.

Further text fields (``context``, ``passage``, ...) are places that a template set may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.conversation import Conversation, Message, Rejected, supervised_flag, text_field

HEADER = "Options:"


def read(row: Mapping[str, Any]) -> Conversation:
    """The question with its options as lines below it, and the answer. Without a set, other fields are ignored."""
    question = _with_options(text_field(row, "question").rstrip(), row.get("options"))
    answer = text_field(row, "answer")
    further = {name: value for name, value in row.items() if isinstance(value, str)}
    return Conversation(
        (Message("user", question), Message("assistant", answer, supervised=supervised_flag(row))),
        fields=further | {"question": question, "answer": answer},
    )


def _with_options(question: str, options: Any) -> str:
    if options is None or options == []:
        return question
    if not isinstance(options, list) or not all(isinstance(each, str) and each.strip() for each in options):
        raise Rejected("bad_options", "'options' is not a list of texts")
    return "\n".join([question, HEADER, *(f"- {' '.join(each.split())}" for each in options)])
