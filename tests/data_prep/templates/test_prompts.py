"""Alpaca's prompts and plain text: word for word, and the same in the exported jinja."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.samples import encode as chat
from data_prep.templates.prompts import ALPACA_NO_INPUT, ALPACA_WITH_INPUT, alpaca_prompt, jinja_for, plain_prompt
from data_prep.tokenizer.tokenizer import Tokenizer
from tests.data_prep.made import byte_tokenizer
from tests.data_prep.samples.test_encode import plain, talk, targets

__all__ = ["plain"]


def test_alpaca_prompts_are_stanfords() -> None:
    with_input = alpaca_prompt(Message("user", "Add {input}.", context="{instruction}"))
    assert with_input == ALPACA_WITH_INPUT.format(instruction="Add {input}.", input="{instruction}")
    assert alpaca_prompt(Message("user", "Go {x}")) == ALPACA_NO_INPUT.format(instruction="Go {x}")


def test_plain_prompt_parts_question_and_answer() -> None:
    assert [plain_prompt(Message("user", text)) for text in ("a", "a ", "a\n")] == ["a\n", "a ", "a\n"]
    assert plain_prompt(Message("user", "a", context="b")) == "a\n\nb\n"


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_templates_of_questions_and_answers_refuse_anything_else(template: str, plain: Tokenizer) -> None:
    for conversation in (
        talk("a", "b", "c"),
        Conversation((Message("user", "u"), Message("tool", "t"), Message("assistant", "a"))),
        Conversation((Message("user", "u"), Message("system", "s"), Message("assistant", "a"))),
        Conversation(()),
    ):
        with pytest.raises(Rejected):
            chat.encode(conversation, template, plain)


@pytest.mark.parametrize("template", ["alpaca", "plain"])
@pytest.mark.parametrize("context", ["", "red tree"])
def test_exported_jinja_writes_the_same(template: str, context: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, template=jinja_for(template) or "")
    turns = Message("user", "Say it.", context=context), Message("assistant", "Hello world")
    several = Conversation(
        (Message("system", "Be brief."), *turns, Message("user", "And?"), Message("assistant", "No"))
    )
    messages = [{"role": each.role, "content": each.content, "context": each.context} for each in several.messages]
    whole = tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert whole == chat.encode(several, template, tokenizer).ids
    assert targets(several, template, tokenizer) == "Hello world<|endoftext|>No<|endoftext|>"
    conversation = Conversation(turns)
    ids = chat.encode(conversation, template, tokenizer).ids
    messages = [{"role": each.role, "content": each.content, "context": each.context} for each in conversation.messages]
    assert tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False) == ids
    prompt = tokenizer.hf.apply_chat_template(
        messages[:1], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert prompt == chat.encode_prompt(Conversation(conversation.messages[:1]), template, tokenizer)
    assert jinja_for("chat") is None
