"""The nearest-neighbour baseline: answer a held-out question with the answer of the most similar training row.

If copying from the training rows were enough, this would score as high as the model. Similarity is the cosine between
tf-idf vectors of words and character trigrams, so that the same words in another phrasing, and the same phrasing with
similar words, are both found. numpy only: an inverted index, one ``bincount`` per question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.demo.make import normalise


def prompt_of(row: dict[str, str]) -> str:
    """Instruction and input of an Alpaca row as one text."""
    return f"{row['instruction']}\n{row['input']}".strip()


def features(text: str) -> Counter[str]:
    """Words and character trigrams of the normalised text with their counts."""
    plain = normalise(text)
    padded = f" {plain} "
    trigrams = (f"#{padded[start : start + 3]}" for start in range(len(padded) - 2))
    return Counter([*re.findall(r"\w+", plain), *trigrams])


@dataclass(frozen=True)
class Index:
    """Inverted index over documents: for each feature the documents that have it and its normalised weight there."""

    documents: int
    postings: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]]

    def nearest(self, text: str) -> int:
        """Number of the most similar document; of equals the first."""
        found = [(self.postings[name], count) for name, count in features(text).items() if name in self.postings]
        if not found:
            return 0
        rows = np.concatenate([documents for (documents, _), _ in found])
        # The query's vector is not normalised: its norm is the same for every document.
        weights = np.concatenate([weight * count * self._idf(len(weight)) for (_, weight), count in found])
        return int(np.bincount(rows, weights, minlength=self.documents).argmax())

    def _idf(self, holders: int) -> float:
        return float(np.log(self.documents / holders)) + 1.0


def index(texts: Sequence[str]) -> Index:
    """Index ``texts``; feature weights are tf-idf over the document's Euclidean norm."""
    counted = [features(text) for text in texts]
    holders = Counter(name for each in counted for name in each)
    idf = {name: float(np.log(len(texts) / count)) + 1.0 for name, count in holders.items()}
    documents: dict[str, list[int]] = {name: [] for name in holders}
    weights: dict[str, list[float]] = {name: [] for name in holders}
    for number, each in enumerate(counted):
        norm = float(np.sqrt(sum((count * idf[name]) ** 2 for name, count in each.items()))) or 1.0
        for name, count in each.items():
            documents[name].append(number)
            weights[name].append(count * idf[name] / norm)
    arrays = {name: (np.array(documents[name], np.int32), np.array(weights[name], np.float32)) for name in holders}
    return Index(len(texts), arrays)


def nearest_answers(training: Sequence[dict[str, str]], prompts: Iterable[str]) -> list[str]:
    """For each prompt the output of the training row whose prompt is most similar to it."""
    lookup = index([prompt_of(row) for row in training])
    return [training[lookup.nearest(prompt)]["output"] for prompt in prompts]


def without(rows: Iterable[dict[str, str]], prompts: Iterable[str]) -> list[dict[str, str]]:
    """``rows`` less those whose normalised prompt is among ``prompts``: the training rows of a split."""
    held_out = {normalise(prompt) for prompt in prompts}
    return [row for row in rows if normalise(prompt_of(row)) not in held_out]
