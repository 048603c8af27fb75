"""The tokenizer's own chat template: which stretch of its text comes from which message.

The template is rendered once with a placeholder for each message, which shows where the messages stand in the text the
template writes around them; control tokens are looked for in that surrounding text only, so that special-token text in
a message stays text. A second rendering with the real messages proves that nothing else differs. Templates that look
into their messages (such as Qwen3's treatment of </think>) fail that proof; for them the spans are found by rendering
growing prefixes of the conversation, and special-token text in the messages is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from conf.errors import ConfigError
from data_prep.conversation import Conversation, Message, Rejected
from data_prep.templates import Segment
from data_prep.tokenizer import Tokenizer

# Private-use characters: they survive `trim`, `upper` and the like, and no tokenizer's template contains them.
MARK = re.compile("\ue0f0([0-9]+)\ue0f1")


def segments(conversation: Conversation, tokenizer: Tokenizer) -> list[Segment]:
    """The conversation in the tokenizer's chat template; raises Rejected, and ConfigError without one."""
    if tokenizer.chat_template is None:
        raise ConfigError(f"data.sources: template 'chat' needs a chat template, and {tokenizer.name} has none")
    messages, tools = _place_tools(conversation, tokenizer)
    marked = [{"role": each.role, "content": f"\ue0f0{index}\ue0f1"} for index, each in enumerate(messages)]
    real = _render(tokenizer, _plain(messages), tools)
    spans = _align(MARK.split(_render(tokenizer, marked, tools)), [each.text for each in messages], real)
    if spans is None:
        return _by_prefixes(messages, tools, real, tokenizer)
    _check_all_present(spans, messages)
    return _mark_targets(spans, messages, tokenizer)


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": each.role, "content": each.text} for each in messages]


def _render(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[Any] | None, *, opening: bool = False
) -> str:
    try:
        return tokenizer.render(messages, tools=tools, add_generation_prompt=opening)
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        raise Rejected("chat_template_refuses", str(error)) from error


def _place_tools(conversation: Conversation, tokenizer: Tokenizer) -> tuple[tuple[Message, ...], list[Any] | None]:
    """Tools as the template wants them; one that has no place for tools gets them as the end of a system message."""
    messages = conversation.messages
    if conversation.tools is None:
        return messages, None
    try:
        tools = json.loads(conversation.tools)
    except ValueError as error:
        raise Rejected("bad_tools", f"tools are not JSON: {error}") from error
    if not isinstance(tools, list):
        raise Rejected("bad_tools", "tools are not a JSON list")
    if tokenizer.chat_takes_tools:
        return messages, tools
    text = f"Tools:\n{conversation.tools}"
    if messages and messages[0].role == "system":
        first = messages[0]
        return (Message("system", f"{first.content}\n\n{text}", first.context, first.supervised), *messages[1:]), None
    return (Message("system", text), *messages), None


def _align(pieces: list[str], texts: list[str], real: str) -> list[tuple[str, int]] | None:
    """[(text, message index or -1)], whose texts together are ``real``; None if they cannot be matched.

    ``pieces``: surrounding text and message numbers in turn, as MARK.split gives them. A template may trim messages.
    """
    spans = [(pieces[0], -1)]
    at = len(pieces[0])
    for number, after in zip(pieces[1::2], pieces[2::2], strict=True):
        for text in (texts[int(number)], texts[int(number)].strip()):
            if real.startswith(text + after, at):
                spans += [(text, int(number)), (after, -1)]
                at += len(text) + len(after)
                break
        else:
            return None
    return spans if at == len(real) and real.startswith(pieces[0]) else None


def _check_all_present(spans: list[tuple[str, int]], messages: Sequence[Message]) -> None:
    missing = set(range(len(messages))) - {index for _, index in spans}
    if missing:
        index = min(missing)
        raise Rejected("chat_template_drops_message", f"message {index} ({messages[index].role}) is not in its text")


def _mark_targets(spans: list[tuple[str, int]], messages: Sequence[Message], tokenizer: Tokenizer) -> list[Segment]:
    """A supervised turn: from the end of its opening, through its text, to the first control token after it."""
    opening = tokenizer.chat_opening
    found: list[Segment] = []
    for place, (text, index) in enumerate(spans):
        if index >= 0:
            found.append(Segment(text, messages[index].is_target))
            continue
        before = spans[place - 1][1] if place else -1
        after = spans[place + 1][1] if place + 1 < len(spans) else -1
        closes = before >= 0 and messages[before].is_target
        start = len(text)
        if opening and after >= 0 and messages[after].is_target and messages[after].role == "assistant":
            at = text.rfind(opening)
            start = at + len(opening) if at >= 0 else len(text)
        found += _literal(text[:start], tokenizer, closes=closes) + _literal(text[start:], tokenizer, targets=True)
    return found


def _literal(text: str, tokenizer: Tokenizer, *, closes: bool = False, targets: bool = False) -> list[Segment]:
    """Segments of text that the template wrote. ``closes``: up to the first control token it ends a supervised turn."""
    found: list[Segment] = []
    open_turn = closes and tokenizer.find_control(text) is not None
    while (name := tokenizer.find_control(text)) is not None:
        before, text = text.split(name, 1)
        token = tokenizer.controls[name]
        before = before.rstrip() if token.lstrip else before
        text = text.lstrip() if token.rstrip else text
        found += [Segment(before, targets or open_turn), Segment(name, targets or open_turn, control=True)]
        open_turn = False
    return [each for each in [*found, Segment(text, targets)] if each.text]


def _by_prefixes(
    messages: Sequence[Message], tools: list[Any] | None, real: str, tokenizer: Tokenizer
) -> list[Segment]:
    """Supervised turns as the text that rendering one more message adds; needs every prefix to be the text's start."""
    for message in messages:
        if name := tokenizer.find_control(message.text):
            raise Rejected(
                "chat_template_refuses", f"it rewrites its messages, and one of them holds the text {name!r}"
            )
    found: list[Segment] = []
    at = 0
    for index, message in enumerate(messages):
        if not message.is_target:
            continue
        start = _render(tokenizer, _plain(messages[:index]), tools, opening=message.role == "assistant")
        end = _render(tokenizer, _plain(messages[: index + 1]), tools)
        if not (real.startswith(start) and real.startswith(end) and at <= len(start) < len(end)):
            raise Rejected(
                "chat_template_rewrites_history", f"message {index} reads otherwise in the whole conversation"
            )
        found += _literal(real[at : len(start)], tokenizer)
        found += _literal(real[len(start) : len(end)], tokenizer, targets=True)
        at = len(end)
    return found + _literal(real[at:], tokenizer)
