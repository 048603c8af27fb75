"""Conversation -> token ids, and how much each counts as a target.

Text is tokenised in *chains*: the text between two control tokens, cut where supervision begins or ends. A cut is
placed between tokens of the whole chain if tokenising the part before it alone gives the same tokens (then training
sees exactly what the tokenizer makes of the whole text, and generation, which has only the part before, sees the same
ids). Where a token would straddle the cut, the part after it starts a chain of its own. The decision for a part
depends only on what stands before it, so ``encode_prompt`` is always a prefix of ``encode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.samples.encoded import Encoded
from data_prep.templates import chat, prompts
from data_prep.templates.asking import Asking, alone, together
from data_prep.templates.chat import Options, Written
from data_prep.templates.segment import Segment
from data_prep.tokenizer.tokenizer import Tokenizer

AUTO, LAST = Options(), Options(turns="last")


def encode(conversation: Conversation, template: str, tokenizer: Tokenizer, options: Options = AUTO) -> Encoded:
    """The one sample of a conversation. EOS, or the template's control token, ends every supervised last turn.

    Raises Rejected (``no_supervised_token``, and what the template has against the conversation), and ValueError if
    it makes one sample of each turn.
    """
    outcomes = encode_batch([conversation], template, tokenizer, options)[0][0]
    if len(outcomes) > 1:
        raise ValueError(f"the template makes {len(outcomes)} samples of this conversation; see encode_batch")
    if isinstance(outcomes[0], Rejected):
        raise outcomes[0]
    return outcomes[0]


def encode_batch(
    conversations: Sequence[Conversation], template: str, tokenizer: Tokenizer, options: Options = AUTO
) -> list[tuple[list[Encoded | Rejected], list[str]]]:
    """(samples, names of changes) of each conversation, tokenised together; a refused one has its Rejected alone."""
    drafts = together((_writing(each, template, tokenizer, options) for each in conversations), tokenizer)
    plans = [_plan(each, template) for draft in drafts if isinstance(draft, Written) for each in draft.samples]
    chains = [(text, part.inside) for plan in plans for part in plan for text in part.so_far]
    guesses = iter(tokenizer.encode_batch([text for text, _ in chains], [inside for _, inside in chains]))
    encoded = (_join(plan, [[next(guesses) for _ in part.so_far] for part in plan], tokenizer) for plan in plans)
    return [
        ([draft], [])
        if isinstance(draft, Rejected)
        else ([_checked(*next(encoded), variant) for variant in range(len(draft.samples))], draft.notes)
        for draft in drafts
    ]


def _checked(ids: list[int], weights: list[float], variant: int) -> Encoded | Rejected:
    # The first token has no predecessor that could predict it.
    if not any(weights[1:]):
        return Rejected("no_supervised_token", "no token of this row is a target")
    mask = [int(weight > 0) for weight in weights]
    return Encoded(ids, mask, variant, weights=None if mask == weights else weights)


def encode_prompt(conversation: Conversation, template: str, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the next assistant turn begins: what a model is given to answer ``conversation``.

    The same ids that ``encode`` gives for the conversation with the answer appended. Raises Rejected.
    """
    # Any answer does: nothing before it depends on it. It is dropped again, with all that follows.
    asked = replace(conversation, messages=(*conversation.messages, Message("assistant", "x", weight=1.0)))
    segments = write(asked, template, tokenizer, LAST).samples[-1]
    last = len(segments)
    while not segments[last - 1].supervised:
        last -= 1
    while last and segments[last - 1].supervised:
        last -= 1
    plan = _plan(segments[:last], template)
    chains = [(text, part.inside) for part in plan for text in part.so_far]
    guesses = iter(tokenizer.encode_batch([text for text, _ in chains], [inside for _, inside in chains]))
    return _join(plan, [[next(guesses) for _ in part.so_far] for part in plan], tokenizer)[0]


def write(conversation: Conversation, template: str, tokenizer: Tokenizer, options: Options = AUTO) -> Written:
    """The conversation as segments, EOS included; raises Rejected."""
    return alone(_writing(conversation, template, tokenizer, options), tokenizer)


def _writing(conversation: Conversation, template: str, tokenizer: Tokenizer, options: Options) -> Asking[Written]:
    if not conversation.messages:
        raise Rejected("no_messages", "the conversation is empty")
    if template == "chat":
        return (yield from chat.write(conversation, tokenizer, options))
    return prompts.write(conversation, cast(Any, template), tokenizer, options)


@dataclass
class _Part:
    """Either one control token or a chain of texts; ``so_far[i]`` is the chain's text up to and with part i."""

    control: str | None
    texts: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """Of each text."""
    weight: float = 0.0
    """Of the control token."""
    inside: bool = False
    """The chain follows a control token. After the BOS of a prompt that is no chat it is a text's beginning still, as
    for the tokenizer itself."""

    @property
    def so_far(self) -> list[str]:
        return ["".join(self.texts[: place + 1]) for place in range(len(self.texts))]


def _plan(segments: Sequence[Segment], template: str) -> list[_Part]:
    """Group segments into control tokens and chains; neighbours of equal weight are one text."""
    parts: list[_Part] = []
    for segment in segments:
        if segment.control:
            parts.append(_Part(segment.text, weight=segment.weight))
        elif segment.text:
            if not parts or parts[-1].control is not None:
                parts.append(_Part(None, inside=len(parts) > (template != "chat")))
            chain = parts[-1]
            if chain.weights and chain.weights[-1] == segment.weight:
                chain.texts[-1] += segment.text
            else:
                chain.texts.append(segment.text)
                chain.weights.append(segment.weight)
    return parts


def _join(
    plan: Sequence[_Part], guesses: Sequence[Sequence[list[int]]], tokenizer: Tokenizer
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for part, guess in zip(plan, guesses, strict=True):
        if part.control is not None:
            ids.append(tokenizer.control_id(part.control))
            weights.append(part.weight)
            continue
        for piece, weight in zip(_cut(part, guess, tokenizer), part.weights, strict=True):
            ids += piece
            weights += [weight] * len(piece)
    return ids, weights


def _cut(part: _Part, guess: Sequence[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each text of a chain. ``guess[i]``: ids of texts[0..i] as one text, right unless a cut was straddled."""
    pieces: list[list[int]] = []
    chain, chain_ids, straddled = "", list[int](), False
    for text, whole in zip(part.texts, guess, strict=True):
        joined = tokenizer.encode(chain + text, inside=True) if straddled else whole
        if joined[: len(chain_ids)] == chain_ids:
            pieces.append(joined[len(chain_ids) :])
            chain, chain_ids = chain + text, joined
        else:
            chain, chain_ids, straddled = text, tokenizer.encode(text, inside=True), True
            pieces.append(chain_ids)
    return pieces
