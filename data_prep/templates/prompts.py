"""How a conversation is written out: Alpaca's prompts, plain text, or the tokenizer's own chat template.

A template turns messages into segments: text (never control), control tokens, and for each whether it is a target.
``encode.py`` makes token ids of them. ``jinja_for`` gives the same templates in jinja, for the exported tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.templates.chat import Options, Written
from data_prep.templates.folding import reasoning_as_text
from data_prep.templates.segment import Segment
from data_prep.tokenizer.tokenizer import Tokenizer

Template = Literal["alpaca", "plain", "chat"]

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
ALPACA_BODY = "### Instruction:"


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


def write(
    conversation: Conversation, template: Literal["alpaca", "plain"], tokenizer: Tokenizer, options: Options
) -> Written:
    """The samples of a conversation of questions and answers in turn; raises Rejected for anything else."""
    notes: list[str] = []
    if any(each.reasoning for each in conversation.messages):
        conversation = replace(conversation, messages=tuple(map(_with_reasoning, conversation.messages)))
        notes.append("reasoning_folded")
    segments: list[Segment] = []
    bos = [Segment(tokenizer.hf.bos_token, 0.0, control=True)] if tokenizer.starts_with_bos else []
    eos, pairs = tokenizer.hf.eos_token, [*pairs_of(conversation, template)]
    samples: list[list[Segment]] = []
    for prompt, answer in pairs:
        asked = [*(bos if not segments else []), Segment(prompt, 0.0)]
        said = [*_answer(answer), Segment(eos, answer.target_weight, control=True)]
        if options.turns != "auto":
            samples.append([*(replace(each, weight=0.0) for each in segments), *asked, *said])
        segments += [*asked, *said]
    if len(samples) < 2:
        return Written([segments], notes)
    targets = [sample for sample, (_, answer) in zip(samples, pairs, strict=True) if answer.is_target] or samples[-1:]
    return Written(targets[-1:] if options.turns == "last" else targets, notes)


def _answer(message: Message) -> Iterator[Segment]:
    weight = message.target_weight
    if not message.parts:
        yield Segment(message.content, weight)
    for part in message.parts:
        yield Segment(part.text, weight if part.weight is None else part.weight)


def _with_reasoning(message: Message) -> Message:
    return reasoning_as_text(message) if message.reasoning else message


def pairs_of(conversation: Conversation, template: Literal["alpaca", "plain"]) -> Iterator[tuple[str, Message]]:
    """(prompt, answer) of every turn; raises Rejected for what the template has no place for.

    A system text stands before the first question: in Alpaca's prompt in the place of its first sentence.
    """
    system, turns = "", conversation.messages
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    roles = [message.role for message in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise Rejected(
            "not_question_and_answer", f"template {template!r} holds questions and answers in turn, not {roles}"
        )
    if conversation.tools or any(each.calls for each in turns):
        raise Rejected("template_cannot_hold_tools", f"template {template!r} has no place for tools")
    for asked, answer in zip(turns[::2], turns[1::2], strict=True):
        if asked.weight or any(part.weight for part in asked.parts):
            raise Rejected("bad_supervised_flag", f"template {template!r} cannot train on the question")
        yield _prompt(asked, template, system), answer
        system = ""


def _prompt(asked: Message, template: str, system: str) -> str:
    if template == "alpaca":
        prompt = alpaca_prompt(asked)
        return f"{system}\n\n{prompt[prompt.index(ALPACA_BODY) :]}" if system else prompt
    return f"{system}\n\n{plain_prompt(asked)}" if system else plain_prompt(asked)


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
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}{% set ns.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}PROMPT{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('this model knows a system message at the start, user and assistant messages') }}"
    "{% endif %}{% endfor %}"
)


def _jinja_prompt(prompt: str) -> str:
    """The prompt with the system text, if there is one, in the place of its first sentence."""
    head, body = prompt.split(ALPACA_BODY, 1)
    parts = [_quoted(part) for part in (ALPACA_BODY + body).replace("{input}", "{instruction}").split("{instruction}")]
    names = ["message['content']", "message['context']"][: len(parts) - 1]
    pieces = [parts[0]] + [piece for pair in zip(names, parts[1:], strict=True) for piece in pair]
    return "{{ (ns.system or " + _quoted(head) + ") + " + " + ".join(pieces) + " }}"


_JINJA_ALPACA = (
    "{% if message['context'] %}" + _jinja_prompt(ALPACA_WITH_INPUT) + "{% else %}"
    + _jinja_prompt(ALPACA_NO_INPUT) + "{% endif %}"
)  # fmt: skip
_JINJA_PLAIN = (
    "{% set text = ns.system + message['content'] + ('\\n\\n' + message['context'] if message['context'] else '') %}"
    "{{ text if text[-1:] in [' ', '\\n', '\\t'] else text + '\\n' }}"
)
