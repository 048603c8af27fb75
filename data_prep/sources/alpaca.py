"""Alpaca: ``{"instruction", "input", "output"}``; an absent, null or empty ``input`` means none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.conversation import Conversation, Message, supervised_flag, text_field


def read(row: Mapping[str, Any]) -> Conversation:
    """One instruction, its input as context, one answer. Other keys are ignored."""
    instruction = text_field(row, "instruction")
    context = text_field(row, "input", optional=True)
    answer = text_field(row, "output")
    return Conversation(
        (
            Message("user", instruction, context=context),
            Message("assistant", answer, supervised=supervised_flag(row)),
        )
    )
