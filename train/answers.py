"""Held-out rows answered by greedy decoding and scored: exact match and ROUGE-L against the reference.

The decoding loop is our own and short, because ``generate`` calls an inner module: DeepSpeed's ZeRO-3 hooks sit on the
outer one, and all ranks must make the same number of forward passes. It gives the tokens ``generate`` gives.

Shape suffixes: B prompts of a batch, P longest prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from data_prep.shards import Split
from train.distributed import Ranks
from train.held_out import evaluating, evenly_spaced
from train.scoring import exact_match, rouge_l
from train.tuning import taken


class Decoder(Protocol):
    """What is needed of a tokenizer: data_prep.tokenizer.Tokenizer has it."""

    @property
    def eos_id(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Answer:
    uid: int
    prompt: str
    reference: str
    answer: str
    exact_match: bool
    rouge_l: float

    def to_dict(self) -> dict[str, Any]:
        """As written to ``samples/``; the uid in hexadecimal, because JSON readers lose 64-bit integers."""
        return asdict(self) | {"uid": f"{self.uid:016x}"}


@dataclass(frozen=True)
class Question:
    """A held-out row cut before its last supervised span: the model continues ``prompt``."""

    row: int
    prompt: list[int]
    reference: list[int]


def answer_rows(
    model: torch.nn.Module,
    split: Split,
    tokenizer: Decoder,
    *,
    rows: int,
    max_new_tokens: int,
    batch_size: int,
    ranks: Ranks,
    synced: bool,
) -> list[Answer]:
    """Answer ``rows`` rows (0: none) spread evenly over ``split``; all answers on every rank, in row order. Collective.

    ``synced``: parameters are sharded (ZeRO-3), so a rank that is done keeps taking part in forward passes until all
    are. Batches are formed before they are dealt to the ranks: which prompts share a batch, and with it the rounding,
    does not depend on the number of ranks.
    """
    if rows == 0:
        return []
    asked = sorted(questions(split, rows), key=lambda question: len(question.prompt))
    batches = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    own: list[tuple[int, Answer]] = []
    with generating(model):
        for turn in range(math.ceil(len(batches) / ranks.world)):
            index = turn * ranks.world + ranks.rank
            batch = batches[index] if index < len(batches) else []
            texts = greedy(model, batch, tokenizer, max_new_tokens=max_new_tokens, ranks=ranks, synced=synced)
            for question, ids in zip(batch, texts, strict=True):
                own.append((question.row, scored(split, tokenizer, question, ids)))
    gathered = [pair for part in ranks.gather(own) for pair in part]
    return [answer for _, answer in sorted(gathered, key=lambda pair: pair[0])]


def questions(split: Split, rows: int) -> list[Question]:
    """Rows spread evenly over those of ``split`` that have a prompt and something to answer."""
    able = np.flatnonzero(np.asarray(split.targets) > 0)
    asked = (question_of(split, int(able[index])) for index in evenly_spaced(len(able), rows))
    return [question for question in asked if question is not None]


def question_of(split: Split, row: int) -> Question | None:
    """Row ``row`` cut before its last run of supervised tokens; None if nothing precedes that run."""
    ids, mask = split.tokens(row)
    end = int(np.flatnonzero(mask)[-1]) + 1
    before = np.flatnonzero(np.asarray(mask[:end]) == 0)
    if not len(before):
        return None
    start = int(before[-1]) + 1
    return Question(row, [int(each) for each in ids[:start]], [int(each) for each in ids[start:end]])


def scored(split: Split, tokenizer: Decoder, question: Question, generated: list[int]) -> Answer:
    reference = tokenizer.decode(question.reference).strip()
    answer = tokenizer.decode(generated).strip()
    return Answer(
        uid=split.uid(question.row),
        prompt=tokenizer.decode(question.prompt),
        reference=reference,
        answer=answer,
        exact_match=exact_match(answer, reference),
        rouge_l=rouge_l(answer, reference),
    )


def greedy(
    model: torch.nn.Module,
    batch: Sequence[Question],
    tokenizer: Decoder,
    *,
    max_new_tokens: int,
    ranks: Ranks,
    synced: bool,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the end-of-sequence token that may have ended it.

    Stops at ``max_new_tokens``, or where the model has no more positions. With ``synced`` this is collective and a
    rank without prompts runs along on a pad token.
    """
    prompts = [question.prompt for question in batch] or [[tokenizer.pad_id]]
    base = base_model(model)
    ids, mask = left_padded(prompts, tokenizer.pad_id, ranks.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last_position = (getattr(base.config, "max_position_embeddings", None) or 1 << 30) - 1 - taken(base)
    accepted = inspect.signature(type(base).forward).parameters
    done = torch.full((len(prompts),), not batch, device=ranks.device)
    lengths = torch.zeros_like(done, dtype=torch.long)
    cache: Any = None
    new: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        busy = not bool(done.all())
        if not (ranks.any(busy) if synced else busy):
            break
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = model(**kwargs, **{name: value for name, value in optional.items() if name in accepted})
        cache = output.past_key_values
        token = output.logits[:, -1].argmax(-1).masked_fill(done, tokenizer.pad_id)  # [B, V] -> [B]
        new.append(token)
        lengths += ~done
        positions = positions[:, -1:] + 1
        done = done | (token == tokenizer.eos_id) | (positions[:, 0] > last_position)
        positions = positions.clamp(max=last_position)
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
    if not batch or not new:
        return [[] for _ in batch]
    rows = zip(torch.stack(new, 1).tolist(), lengths.tolist(), strict=True)
    return [before(row[:length], tokenizer.eos_id) for row, length in rows]


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts aligned at their ends: token ids and attention mask, int64 [B, P]."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def before(ids: list[int], end: int) -> list[int]:
    """``ids`` up to the first ``end``, which is left out."""
    return ids[: ids.index(end)] if end in ids else ids


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside DeepSpeed's engine and PEFT's adapter, if there are such."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner.module
    return inner


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[None]:
    """Inside it, evaluation mode and an attention implementation that knows a key-value cache (packed has none)."""
    base = base_model(model)
    own = base.config._attn_implementation
    cached = "sdpa" if base._supports_sdpa else "eager"
    if own != cached:
        base.set_attn_implementation(cached)
    try:
        with evaluating(model):
            yield
    finally:
        if own != cached:
            base.set_attn_implementation(own)
