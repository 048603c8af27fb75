"""Prompt and completion: ``{"prompt", "completion"}``, both strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.conversation import Conversation, Message, supervised_flag, text_field


def read(row: Mapping[str, Any]) -> Conversation:
    """One question and one answer. Other keys are ignored."""
    prompt = text_field(row, "prompt")
    completion = text_field(row, "completion")
    return Conversation((Message("user", prompt), Message("assistant", completion, supervised=supervised_flag(row))))
