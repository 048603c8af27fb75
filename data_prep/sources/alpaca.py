"""Alpaca: ``{"instruction", "input", "output", "system"?, "history"?}``; an absent, null or empty ``input`` means none.

``system`` and ``history`` (pairs of a question and its answer, the oldest first) are LLaMA-Factory's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, text_field, turn_weight
from data_prep.rows.turns import WEIGHTS

TEMPLATE = "alpaca"
TURNS = "one"
KEYS = frozenset({"instruction", "input", "output", "system", "history", *WEIGHTS})


def read(row: Mapping[str, Any]) -> Conversation:
    """One instruction, its input as context, one answer; before it the system text and the earlier turns."""
    instruction = text_field(row, "instruction")
    context = text_field(row, "input", optional=True)
    answer = text_field(row, "output")
    before = _before(row) if row.get("system") or row.get("history") else ()
    return Conversation(
        (
            *before,
            Message("user", instruction, context=context),
            Message("assistant", answer, weight=turn_weight(row)),
        )
    )


def _before(row: Mapping[str, Any]) -> tuple[Message, ...]:
    system, history = text_field(row, "system", optional=True), row.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(each) for each in history):
        raise Rejected("bad_history", "'history' is not a list of pairs of a question and an answer")
    turns = (turn for asked, said in history for turn in (Message("user", asked), Message("assistant", said)))
    return (*([Message("system", system)] if system else []), *turns)


def _is_pair(each: Any) -> bool:
    return isinstance(each, list) and len(each) == 2 and all(isinstance(text, str) for text in each)
