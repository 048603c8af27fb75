"""How a conversation is written out: Alpaca's prompts, plain text, or the tokenizer's own chat template.

A template turns messages into segments: text (never control), control tokens, and for each whether it is a target.
``chat.py`` makes token ids of them. ``jinja_for`` gives the same templates in jinja, for the exported tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_prep.conversation import Conversation, Message, Rejected

Template = Literal["alpaca", "plain", "chat"]

DEFAULTS: dict[str, Template] = {
    "alpaca": "alpaca",
    "prompt_completion": "plain",
    "sharegpt": "chat",
    "messages": "chat",
    "flan_cot": "plain",
    "niv2": "plain",
    "p3": "plain",
    "qa": "plain",
}
"""Template of each source format with ``template: auto``."""

# PROMPT_DICT of stanford_alpaca/train.py (Apache-2.0), word for word. The answer follows without a space.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@dataclass(frozen=True)
class Segment:
    """A stretch of a sample: ``text`` to be tokenised as text, or, with ``control``, the name of one control token."""

    text: str
    supervised: bool
    control: bool = False


def resolve(template: str, source_format: str) -> Template:
    """The template meant by ``auto`` for this format; others stand for themselves."""
    if template == "auto":
        return DEFAULTS[source_format]
    return template  # type: ignore[return-value]


def alpaca_prompt(message: Message) -> str:
    """The Stanford prompt for one instruction, with or without input."""
    # Not str.format: braces in the data are data.
    prompt = ALPACA_WITH_INPUT if message.context else ALPACA_NO_INPUT
    head, tail = prompt.split("{instruction}")
    return head + message.content + tail.replace("{input}", message.context, 1)


def plain_prompt(message: Message) -> str:
    """The text itself; a line break parts it from the answer unless it ends in white space already."""
    text = message.text
    return text if text.endswith((" ", "\n", "\t")) else text + "\n"


def prompt_of(conversation: Conversation, template: Literal["alpaca", "plain"]) -> str:
    """The prompt of a one-turn conversation (with or without its answer); raises Rejected for anything else."""
    roles = [message.role for message in conversation.messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise Rejected("not_single_turn", f"template {template!r} holds one question and one answer, not {roles}")
    if conversation.tools:
        raise Rejected("template_cannot_hold_tools", f"template {template!r} has no place for tools")
    message = conversation.messages[0]
    if message.supervised:
        raise Rejected("bad_supervised_flag", f"template {template!r} cannot train on the question")
    return alpaca_prompt(message) if template == "alpaca" else plain_prompt(message)


def jinja_for(template: str, *, starts_with_bos: bool = False) -> str | None:
    """A chat template in jinja that reproduces ``alpaca`` or ``plain``; None for ``chat``, whose tokenizer has one.

    A user message may carry Alpaca's input as ``context``. ``starts_with_bos``: Tokenizer.starts_with_bos.
    """
    if template == "chat":
        return None
    bos = "{{ bos_token }}" if starts_with_bos else ""
    return bos + _JINJA_LOOP.replace("PROMPT", _JINJA_ALPACA if template == "alpaca" else _JINJA_PLAIN)


def _quoted(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


_JINJA_LOOP = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}PROMPT"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant messages are known to this model') }}{% endif %}"
    "{% endfor %}"
)


def _jinja_prompt(prompt: str) -> str:
    parts = [_quoted(part) for part in prompt.replace("{input}", "{instruction}").split("{instruction}")]
    names = ["message['content']", "message['context']"][: len(parts) - 1]
    pieces = [parts[0]] + [piece for pair in zip(names, parts[1:], strict=True) for piece in pair]
    return "{{ " + " + ".join(pieces) + " }}"


_JINJA_ALPACA = (
    "{% if message['context'] %}" + _jinja_prompt(ALPACA_WITH_INPUT) + "{% else %}"
    + _jinja_prompt(ALPACA_NO_INPUT) + "{% endif %}"
)  # fmt: skip
_JINJA_PLAIN = (
    "{% set text = message['content'] + ('\\n\\n' + message['context'] if message['context'] else '') %}"
    "{{ text if text[-1:] in [' ', '\\n', '\\t'] else text + '\\n' }}"
)
