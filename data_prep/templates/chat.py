"""Conversations in the tokenizer's own chat template, turn by turn as generation sees them.

The outline of a conversation (outline.py) depends on its shape alone and is kept; the real contents are then put in the
places of the placeholders, where they stay text: only what the template writes itself can be a control token. A
rendering with the real contents proves that nothing else differs. For templates that look into contents (such as
Qwen3's treatment of </think>) that proof fails; for them the outline is made of the real contents, which then must not
spell out a control token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.errors import ConfigError
from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.rows.turns import REASONING
from data_prep.templates.asking import Asking
from data_prep.templates.folding import fold
from data_prep.templates.outline import Outline, Piece, Turn, mark, outline
from data_prep.templates.segment import Segment, written
from data_prep.tokenizer.renderer import Ask
from data_prep.tokenizer.tokenizer import Tokenizer

MOST_OUTLINES = 1_024
_outlines: dict[Any, Outline | None] = {}
"""Those that were needed last, by all that they depend on."""


@dataclass(frozen=True)
class Options:
    """How the samples of a conversation are made; see DataConfig (conf/schema/data.py)."""

    turns: str = "auto"
    """each, last or auto."""
    fold_system: bool = True
    turn_ends: bool = True


@dataclass(frozen=True)
class Written:
    """A conversation, written out."""

    samples: list[list[Segment]]
    """One, or one of each turn that is a target."""
    notes: list[str] = field(default_factory=list)
    """Names of what the template had no place for, and of other changes (folding.WHY)."""


def write(conversation: Conversation, tokenizer: Tokenizer, options: Options) -> Asking[Written]:
    """The samples of the conversation; raises Rejected, and ConfigError without a chat template."""
    if tokenizer.chat_template is None:
        raise ConfigError(f"data.sources: template 'chat' needs a chat template, and {tokenizer.name} has none")
    messages, tools, notes = fold(conversation, tokenizer, fold_system=options.fold_system)
    _refuse_controls(messages, tools, tokenizer)
    wanted = [place for place, message in enumerate(messages) if message.is_target]
    if not wanted:
        raise Rejected("no_supervised_token", "no turn of this row is a target")
    whole = None
    if options.turns == "auto" or len(wanted) == 1:
        whole = yield from _one_pass(messages, tools, wanted, tokenizer, options, notes)
    if whole is not None:
        return Written([whole], sorted({*notes}))
    chosen = wanted[-1:] if options.turns == "last" else wanted
    samples = []
    for turn in chosen:
        sample = yield from _one_pass(messages[: turn + 1], tools, [turn], tokenizer, options, notes)
        if sample is None:
            raise Rejected("chat_template_rewrites_history", f"message {turn} reads otherwise in the whole")
        samples.append(sample)
    return Written(samples, sorted({*notes}))


def _refuse_controls(messages: Sequence[Message], tools: list[Any] | None, tokenizer: Tokenizer) -> None:
    """What a template writes among its own text must not spell out a control token."""
    texts = [text for message in messages for call in message.calls for text in (call.name, call.arguments)]
    texts += [text for message in messages for text in (message.name, message.call_id)]
    texts += [] if tools is None else [json.dumps(tools, ensure_ascii=False)]
    for text in texts:
        if text and (name := tokenizer.find_control(text)):
            raise Rejected("control_in_tool_call", f"the special token {name!r} stands in a tool, a call or a name")


def _one_pass(
    messages: Sequence[Message],
    tools: list[Any] | None,
    wanted: Sequence[int],
    tokenizer: Tokenizer,
    options: Options,
    notes: list[str],
) -> Asking[list[Segment] | None]:
    """The conversation as one sample whose targets are the turns ``wanted``; None if the template rewrites history."""
    real = [_turn(message, message.text, message.reasoning) for message in messages]
    text = yield Ask(real, tools)
    marked = yield from _outline(tokenizer, _shape(messages), json.dumps(tools), tuple(wanted), options.turn_ends)
    texts = [each for message in messages for each in (message.text, message.reasoning)]
    filled = None if marked is None else _filled(marked, texts, text)
    if filled is None:  # it looks into the contents
        if (name := next(filter(None, map(tokenizer.find_control, texts)), None)) is not None:
            why = f"it rewrites its messages, and one of them holds the text {name!r}"
            raise Rejected("chat_template_refuses", why)
        if any(messages[turn].parts for turn in wanted):
            raise Rejected("chat_template_refuses", "it rewrites its messages, and one has parts of their own weight")
        marked = yield from outline(tokenizer, real, tools, wanted, turn_ends=options.turn_ends)
        if marked is None:
            return None
        filled = [(piece, piece.text) for piece in marked.pieces]
    notes += _check_all_present(filled, messages, wanted)
    notes += ["opening_differs"] if marked is not None and marked.opening_differs else []
    return [*_segments(filled, messages, tokenizer), *_eos(marked, messages, tokenizer)]


def _turn(message: Message, content: str, reasoning: str) -> Turn:
    """A message as chat templates get it, under every name that they know for its parts."""
    turn: Turn = {"role": message.role, "content": content}
    if reasoning:
        turn |= dict.fromkeys(REASONING, reasoning)
    if message.calls:
        turn["tool_calls"] = [
            {"type": "function", **({"id": call.id} if call.id else {}), "function": function}
            for call in message.calls
            for function in ({"name": call.name, "arguments": json.loads(call.arguments)},)
        ]
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.name:
        turn["name"] = message.name
    return turn


def _shape(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with placeholders for the contents: all that an outline depends on."""
    return tuple(
        Message(
            message.role,
            mark(2 * place) if message.text else "",
            reasoning=mark(2 * place + 1) if message.reasoning else "",
            calls=message.calls,
            call_id=message.call_id,
            name=message.name,
        )
        for place, message in enumerate(messages)
    )


def _outline(
    tokenizer: Tokenizer, shape: tuple[Message, ...], tools: str, wanted: tuple[int, ...], turn_ends: bool
) -> Asking[Outline | None]:
    key = (tokenizer, shape, tools, wanted, turn_ends)
    if key in _outlines:
        _outlines[key] = _outlines.pop(key)  # the one that was used last is behind all others
        return _outlines[key]
    turns = [_turn(message, message.content, message.reasoning) for message in shape]
    found = yield from outline(tokenizer, turns, json.loads(tools), wanted, turn_ends=turn_ends)
    _outlines[key] = found
    if len(_outlines) > MOST_OUTLINES:
        del _outlines[next(iter(_outlines))]
    return found


def _filled(found: Outline, texts: Sequence[str], real: str) -> list[tuple[Piece, str]] | None:
    """Every piece with its real text, which together are ``real``; None if they are not. A template may trim."""
    filled: list[tuple[Piece, str]] = []
    at = 0
    pieces = found.pieces
    for place, piece in enumerate(pieces):
        if piece.number < 0:
            text: str | None = piece.text if real.startswith(piece.text, at) else None
        else:
            after = pieces[place + 1].text if place + 1 < len(pieces) else ""
            trimmed = _trimmings(texts[piece.number])
            text = next((each for each in trimmed if real.startswith(each + after, at)), None)
        if text is None:
            return None
        filled.append((piece, text))
        at += len(text)
    return filled if at == len(real) else None


def _trimmings(text: str) -> Iterator[str]:
    yield text
    yield text.strip()
    yield text.strip("\n")
    yield text.lstrip()
    yield text.rstrip()
    yield text.lstrip("\n")
    yield text.rstrip("\n")


def _check_all_present(
    filled: Sequence[tuple[Piece, str]], messages: Sequence[Message], wanted: Sequence[int]
) -> list[str]:
    """Raise Rejected if a text of the conversation is not in the sample; names of what may be left out."""
    shown = {piece.number for piece, _ in filled if piece.number >= 0}
    looks = not shown and any(message.text for message in messages)
    squeezed = "".join("".join(text for _, text in filled).split()) if looks else ""
    notes = []
    for place, message in enumerate(messages):
        for number, text in ((2 * place, message.text), (2 * place + 1, message.reasoning)):
            if not text or number in shown or (looks and "".join(text.split()) in squeezed):
                continue
            if place not in wanted and message.role == "assistant" and (looks or number % 2):
                notes.append("reasoning_left_out")
                continue
            what = "reasoning of message" if number % 2 else "message"
            raise Rejected("chat_template_drops_message", f"{what} {place} ({message.role}) is not in its text")
    return notes


def _segments(
    filled: Sequence[tuple[Piece, str]], messages: Sequence[Message], tokenizer: Tokenizer
) -> Iterator[Segment]:
    for piece, text in filled:
        weight = messages[piece.turn].target_weight if piece.turn >= 0 else 0.0
        if piece.number < 0:
            yield from written(text, weight, tokenizer)
        elif piece.turn >= 0 and messages[piece.turn].parts and piece.number % 2 == 0:
            yield from _parts(text, messages[piece.turn])
        elif text:
            yield Segment(text, weight)


def _parts(text: str, message: Message) -> Iterator[Segment]:
    """The parts of a content, each with its weight. ``text``: the content as the template trimmed it."""
    at = message.content.find(text)
    begin = 0
    for part in message.parts:
        stretch = part.text[max(0, at - begin) : max(0, at + len(text) - begin)]
        if stretch:
            yield Segment(stretch, message.target_weight if part.weight is None else part.weight)
        begin += len(part.text)


def _eos(found: Outline | None, messages: Sequence[Message], tokenizer: Tokenizer) -> Iterator[Segment]:
    if found is not None and found.eos_of >= 0:
        yield Segment(tokenizer.hf.eos_token, messages[found.eos_of].target_weight, control=True)
