"""Conversation -> token ids and loss mask.

Text is tokenised in *chains*: the text between two control tokens, cut where supervision begins or ends. A cut is
placed between tokens of the whole chain if tokenising the part before it alone gives the same tokens (then training
sees exactly what the tokenizer makes of the whole text, and generation, which has only the part before, sees the same
ids). Where a token would straddle the cut, the part after it starts a chain of its own. The decision for a part
depends only on what stands before it, so ``encode_prompt`` is always a prefix of ``encode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from data_prep import chat_template
from data_prep.conversation import Conversation, Message, Rejected
from data_prep.templates import Segment, Template, prompt_of
from data_prep.tokenizer import Tokenizer


def encode(conversation: Conversation, template: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(token ids, loss mask 0/1), of equal length. EOS ends every supervised last turn and is a target.

    Raises Rejected: ``no_supervised_token``, and what the template has against the conversation.
    """
    outcome = encode_batch([conversation], template, tokenizer)[0]
    if isinstance(outcome, Rejected):
        raise outcome
    return outcome


def encode_batch(
    conversations: Sequence[Conversation], template: str, tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]] | Rejected]:
    """``encode`` of each, tokenised together; a conversation that is refused is returned as its Rejected."""
    segments: list[list[Segment] | Rejected] = []
    for conversation in conversations:
        try:
            segments.append(render(conversation, template, tokenizer))
        except Rejected as rejected:
            segments.append(rejected)
    plans = [_plan(each) for each in segments if not isinstance(each, Rejected)]
    guesses = iter(tokenizer.encode_batch([text for plan in plans for part in plan for text in part.so_far]))
    encoded = (_join(plan, [[next(guesses) for _ in part.so_far] for part in plan], tokenizer) for plan in plans)
    return [each if isinstance(each, Rejected) else _checked(*next(encoded)) for each in segments]


def _checked(ids: list[int], mask: list[int]) -> tuple[list[int], list[int]] | Rejected:
    # The first token has no predecessor that could predict it.
    if not any(mask[1:]):
        return Rejected("no_supervised_token", "no token of this row is a target")
    return ids, mask


def encode_prompt(conversation: Conversation, template: str, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the next assistant turn begins: what a model is given to answer ``conversation``.

    The same ids that ``encode`` gives for the conversation with the answer appended. Raises Rejected.
    """
    # Any answer does: nothing before it depends on it. It is dropped again, with all that follows.
    asked = replace(conversation, messages=(*conversation.messages, Message("assistant", "x", supervised=True)))
    segments = render(asked, template, tokenizer)
    last = len(segments)
    while not segments[last - 1].supervised:
        last -= 1
    while last and segments[last - 1].supervised:
        last -= 1
    plan = _plan(segments[:last])
    texts = [text for part in plan for text in part.so_far]
    guesses = iter(tokenizer.encode_batch(texts))
    return _join(plan, [[next(guesses) for _ in part.so_far] for part in plan], tokenizer)[0]


def render(conversation: Conversation, template: str, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of a sample, EOS included; raises Rejected."""
    if not conversation.messages:
        raise Rejected("no_messages", "the conversation is empty")
    if template == "chat":
        return _end_with_eos(chat_template.segments(conversation, tokenizer), conversation, tokenizer)
    prompt = prompt_of(conversation, cast(Template, template))  # type: ignore[arg-type]
    bos = [Segment(tokenizer.hf.bos_token, False, control=True)] if tokenizer.starts_with_bos else []
    answer = conversation.messages[-1]
    eos = Segment(tokenizer.hf.eos_token, answer.is_target, control=True)
    return [*bos, Segment(prompt, False), Segment(answer.content, answer.is_target), eos]


def _end_with_eos(segments: list[Segment], conversation: Conversation, tokenizer: Tokenizer) -> list[Segment]:
    """A chat whose last turn is a target ends in a supervised EOS, whether or not the template writes one.

    If it does not (ChatML on a base model), everything after the answer becomes a target too: the model must get from
    the answer to EOS by itself.
    """
    if not conversation.messages[-1].is_target:
        return segments
    last = max((place for place, each in enumerate(segments) if each.supervised and not each.control), default=0)
    eos = tokenizer.hf.eos_token
    if any(each.control and each.text == eos and each.supervised for each in segments[last:]):
        return segments
    tail = [replace(each, supervised=True) for each in segments[last:]]
    return [*segments[:last], *tail, Segment(eos, True, control=True)]


@dataclass(frozen=True)
class _Part:
    """Either one control token or a chain of texts; ``so_far[i]`` is the chain's text up to and with part i."""

    control: str | None
    texts: tuple[str, ...] = ()
    masks: tuple[bool, ...] = ()
    supervised: bool = False

    @property
    def so_far(self) -> list[str]:
        return ["".join(self.texts[: place + 1]) for place in range(len(self.texts))]


def _plan(segments: Sequence[Segment]) -> list[_Part]:
    """Group segments into control tokens and chains; neighbours with the same supervision are one text."""
    parts: list[_Part] = []
    for segment in segments:
        if segment.control:
            parts.append(_Part(segment.text, supervised=segment.supervised))
        elif segment.text:
            chain = parts.pop() if parts and parts[-1].control is None else _Part(None)
            if chain.masks and chain.masks[-1] == segment.supervised:
                texts = (*chain.texts[:-1], chain.texts[-1] + segment.text)
                parts.append(replace(chain, texts=texts))
            else:
                parts.append(
                    replace(chain, texts=(*chain.texts, segment.text), masks=(*chain.masks, segment.supervised))
                )
    return parts


def _join(
    plan: Sequence[_Part], guesses: Sequence[Sequence[list[int]]], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    mask: list[int] = []
    for part, guess in zip(plan, guesses, strict=True):
        if part.control is not None:
            ids.append(tokenizer.control_id(part.control))
            mask.append(int(part.supervised))
            continue
        for piece, supervised in zip(_cut(part.texts, guess, tokenizer), part.masks, strict=True):
            ids += piece
            mask += [int(supervised)] * len(piece)
    return ids, mask


def _cut(texts: Sequence[str], guess: Sequence[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each text of a chain. ``guess[i]``: ids of texts[0..i] as one text, right unless a cut was straddled."""
    pieces: list[list[int]] = []
    chain, chain_ids, straddled = "", list[int](), False
    for text, whole in zip(texts, guess, strict=True):
        joined = tokenizer.encode(chain + text) if straddled else whole
        if joined[: len(chain_ids)] == chain_ids:
            pieces.append(joined[len(chain_ids) :])
            chain, chain_ids = chain + text, joined
        else:
            chain, chain_ids, straddled = text, tokenizer.encode(text), True
            pieces.append(chain_ids)
    return pieces
