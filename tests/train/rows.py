"""Held-out rows, tokenizer and ranks in memory, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from data_prep.stream.forest import Forest
from data_prep.stream.windows import PackedRow
from tests.tiny import tiny_model
from train.attention import Attention, choose
from train.evaluate.answers import Answer, Asked, answer_rows
from train.families import family
from train.ranks.group import Ranks

VOCAB, EOS, PAD = 64, 62, 63
CPU = torch.device("cpu")
ALONE = Ranks()
PADDED = Attention(name="sdpa", implementation="sdpa", layout="padded")


@dataclass
class Words:
    """A tokenizer whose ids are their own words."""

    stop_ids: tuple[int, ...] = (EOS,)
    pad_id: int = PAD

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(each) for each in ids if each < EOS)


@dataclass
class FakeSplit:
    """Rows of [prompt, answer, eos] in memory."""

    name: str
    samples: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
    prefixes: tuple[tuple[int, ...], ...] = ()
    """Longest first."""

    @property
    def rows(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        return np.array([len(ids) for ids, _ in self.samples], dtype=np.int32)

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        return np.array([int(mask[1:].sum()) for _, mask in self.samples], dtype=np.int32)

    def tokens(self, row: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return self.samples[row]

    def weights(self, row: int) -> None:
        return None

    @property
    def shared(self) -> np.ndarray[Any, Any]:
        return np.array([self.prefix(row)[0] + 1 for row in range(self.rows)], dtype=np.int32)

    def prefix(self, row: int) -> tuple[int, int]:
        ids, mask = self.samples[row]
        fitting = [
            (index, len(prefix))
            for index, prefix in enumerate(self.prefixes)
            if tuple(ids[: len(prefix)]) == prefix and not mask[: len(prefix) + 1].any()
        ]
        return fitting[0] if fitting else (-1, 0)

    def uid(self, row: int) -> int:
        return 2**63 + row


def sharing(split: FakeSplit, rows: Sequence[int]) -> PackedRow:
    """These rows in one, which compute what they begin with once."""
    forest = Forest.of([split])
    shared = forest.shared_in(forest.of_source[0][split.shared[rows]].tolist())
    return PackedRow(tuple((0, row) for row in rows), shared=tuple(shared))


def fake_split(rows: int = 11, seed: int = 0, name: str = "a", prefixes: tuple[tuple[int, ...], ...] = ()) -> Any:
    """``prefixes`` go round: a row begins with one of them, the next with another, the last with none."""
    generator = np.random.default_rng(seed)
    samples = []
    for row in range(rows):
        head = np.array([*prefixes, ()][row % (len(prefixes) + 1)], np.int32)
        prompt, answer = generator.integers(3, 12), generator.integers(1, 6)
        ids = np.concatenate([head, generator.integers(0, EOS, prompt + answer), [EOS]]).astype(np.int32)
        mask = np.array([0] * (len(head) + prompt) + [1] * (answer + 1), dtype=np.uint8)
        samples.append((ids, mask))
    return FakeSplit(name, samples, prefixes)


@dataclass(frozen=True)
class LoneRanks(Ranks):
    """One rank of several whose sums stay its own, to look at its share."""

    def sum(self, values: list[float]) -> list[float]:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag


def packed_model(kind: str) -> tuple[PreTrainedModel, Attention]:
    attention = choose("packed", family=family(kind), pack="exact", dtype=torch.float32, device=CPU)
    return tiny_model(kind, vocab_size=VOCAB, implementation=attention.implementation), attention


def answered(
    model: Any, split: Any, tokenizer: Any, *, rows: int, max_new_tokens: int, batch_size: int, **how: Any
) -> list[Answer]:
    return answer_rows(model, {"a": split}, tokenizer, Asked(rows, max_new_tokens, batch_size), **how)["a"]
