"""Answers held-out samples by greedy decoding and scores the answers against references: exact match and ROUGE-L.

This module has its own short decoding loop because ``generate`` calls an inner module, while DeepSpeed's ZeRO-3 hooks
are on the outer module and all ranks must make the same number of forward passes. Both loops return the same tokens.

Shape suffixes: B prompts of a batch, P longest prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from data_prep.corpus.shards import Split
from train.evaluate.held_out import evaluating, evenly_spaced
from train.evaluate.scoring import exact_match, rouge_l
from train.ranks.group import Ranks
from train.tuning import taken
from train.watchdog.heartbeat import heart


class Decoder(Protocol):
    """The part of a tokenizer that answers need; data_prep.tokenizer.tokenizer.Tokenizer provides it."""

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

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
    cut: bool
    """It ended at ``max_new_tokens``, without an end of sequence."""

    def to_dict(self) -> dict[str, Any]:
        """The form in ``samples/``. The uid is hexadecimal, because JSON readers round 64-bit integers."""
        return asdict(self) | {"uid": f"{self.uid:016x}"}


@dataclass(frozen=True)
class Question:
    """A held-out sample cut before its last span of targets: the model continues ``prompt``."""

    source: str
    row: int
    prompt: list[int]
    reference: list[int]


@dataclass(frozen=True)
class Asked:
    """How many samples the model answers, and how."""

    rows: int
    """Samples to answer of every source; 0: none."""
    max_new_tokens: int
    batch_size: int
    """Samples to answer at once."""


def answer_rows(
    model: torch.nn.Module,
    splits: Mapping[str, Split],
    tokenizer: Decoder,
    asked: Asked,
    *,
    ranks: Ranks,
    synced: bool,
    check: Callable[[], None] = lambda: None,
) -> dict[str, list[Answer]]:
    """Answer samples spread evenly over each of ``splits``; all answers on every rank, in a split's order. Collective.

    A batch holds samples of any source: under ZeRO-3 every forward pass gathers the whole model, so their number
    counts. ``synced``: parameters are sharded so, and a rank that has finished continues to make forward passes until
    all ranks have. Batches are formed before the ranks share them, so the prompts of a batch, and its rounding, do not
    depend on the number of ranks.
    """
    if asked.rows == 0:
        return {name: [] for name in splits}
    by_length = sorted(
        (question for name, split in splits.items() for question in questions(name, split, asked.rows)),
        key=lambda question: len(question.prompt),
    )
    batches = [by_length[start : start + asked.batch_size] for start in range(0, len(by_length), asked.batch_size)]
    answers: list[tuple[str, int, Answer]] = []
    with generating(model):
        for turn in range(math.ceil(len(batches) / ranks.world)):
            check()
            index = turn * ranks.world + ranks.rank
            batch = batches[index] if index < len(batches) else []
            texts = greedy(model, batch, tokenizer, max_new_tokens=asked.max_new_tokens, ranks=ranks, synced=synced)
            for question, ids in zip(batch, texts, strict=True):
                cut = len(ids) == asked.max_new_tokens
                answer = scored(splits[question.source], tokenizer, question, ids, cut=cut)
                answers.append((question.source, question.row, answer))
    found = sorted((each for part in ranks.gather(answers) for each in part), key=lambda each: each[:2])
    return {name: [answer for source, _, answer in found if source == name] for name in splits}


def questions(source: str, split: Split, rows: int) -> list[Question]:
    """Questions from samples spread evenly over those with targets in ``split``; skips samples without a prompt."""
    able = np.flatnonzero(np.asarray(split.targets) > 0)
    asked = (question_of(source, split, int(able[index])) for index in evenly_spaced(len(able), rows))
    return [question for question in asked if question is not None]


def question_of(source: str, split: Split, row: int) -> Question | None:
    """Sample ``row`` cut before its last run of targets; None if nothing precedes that run."""
    ids, mask = split.tokens(row)
    end = int(np.flatnonzero(mask)[-1]) + 1
    before = np.flatnonzero(np.asarray(mask[:end]) == 0)
    if not len(before):
        return None
    start = int(before[-1]) + 1
    return Question(source, row, [int(token) for token in ids[:start]], [int(token) for token in ids[start:end]])


def scored(split: Split, tokenizer: Decoder, question: Question, generated: list[int], *, cut: bool) -> Answer:
    reference = tokenizer.decode(question.reference).strip()
    answer = tokenizer.decode(generated).strip()
    return Answer(
        uid=split.uid(question.row),
        prompt=tokenizer.decode(question.prompt),
        reference=reference,
        answer=answer,
        exact_match=exact_match(answer, reference),
        rouge_l=rouge_l(answer, reference),
        cut=cut,
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
    """The most likely continuation of each prompt, without a final end-of-sequence token.

    Decoding stops at ``max_new_tokens`` or at the model's last position. With ``synced`` the call is collective, and a
    rank without prompts decodes a pad token.
    """
    prompts = [question.prompt for question in batch] or [[tokenizer.pad_id]]
    base = base_model(model)
    ids, mask = left_padded(prompts, tokenizer.pad_id, ranks.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last_position = (getattr(base.config, "max_position_embeddings", None) or 1 << 30) - 1 - taken(base)
    accepted = inspect.signature(type(base).forward).parameters
    stops = torch.tensor(tokenizer.stop_ids, device=ranks.device)
    done = torch.full((len(prompts),), not batch, device=ranks.device)
    lengths = torch.zeros_like(done, dtype=torch.long)
    cache: Any = None
    new: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        heart.alive()
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
        done = done | torch.isin(token, stops) | (positions[:, 0] > last_position)
        positions = positions.clamp(max=last_position)
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
    if not batch or not new:
        return [[] for _ in batch]
    rows = zip(torch.stack(new, 1).tolist(), lengths.tolist(), strict=True)
    return [before(row[:length], tokenizer.stop_ids) for row, length in rows]


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts aligned at their ends: token ids and attention mask, int64 [B, P]."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def before(ids: list[int], ends: Collection[int]) -> list[int]:
    """``ids`` before the first that is among ``ends``; all of them if none is."""
    return list(takewhile(lambda token: token not in ends, ids))


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model; ``model`` may wrap it in DeepSpeed's engine and PEFT's adapter."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner.module
    return inner


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[None]:
    """Inside the context, evaluation mode and an attention implementation with a key-value cache (packed has none)."""
    base = base_model(model)
    configured = base.config._attn_implementation
    cached = "sdpa" if base._supports_sdpa else "eager"
    if configured != cached:
        base.set_attn_implementation(cached)
    try:
        with evaluating(model):
            yield
    finally:
        if configured != cached:
            base.set_attn_implementation(configured)
