"""Rows of one source that repeat an earlier one: exactly, or nearly.

Nearly: the sets of three-word runs of two conversations overlap (Jaccard index) by ``data.near_duplicates`` or more, as
MinHash estimates it from 128 permutations (Broder 1997; standard error at 0.8: 0.035). Candidates come from a
locality-sensitive index that misses one pair in eight just at the threshold, one in forty 0.05 above it. Rows are taken
in order and only those that stay are looked at later, so the earliest of a group stays and a chain of small changes
does not swallow rows that differ. Signatures are made in the blocks; the index is built in one process and takes about
7 kB per row that stays.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.filters.ngrams import Hashes, ngram_hashes, word_hashes, words
from data_prep.rows.conversation import Conversation, texts_of
from data_prep.rows.stage import Part

PERMUTATIONS = 128
SHINGLE_WORDS = 3
LOW_BITS = np.uint64(0xFFFFFFFF)
SCHEME = "affine32"
WEIGHTS = (0.1, 0.9)
"""Of false candidates and of missed ones in choosing the index's bands: candidates are compared once more anyway."""

Signatures = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Deduplicate:
    """Which repeats of a source are left out. No stage of one record: it needs all of them."""

    exact: bool
    """``data.clean.duplicate``; its part of the identity stands with the other rules'."""
    near: float | None
    """``data.near_duplicates``."""

    def identity(self) -> Part:
        return {} if self.near is None else {"data": {"near_duplicates": self.near}}


@dataclass(frozen=True)
class Repeat:
    """What a row repeats."""

    original: int
    """Place of the row that stays."""
    share: float
    """Estimated Jaccard index of the two."""
    is_exact: bool = False
    held_out: bool = False
    """The row that stays is held out, and only the prompts of the two are the same."""


def held_out_prompts(prompts: Hashes, held_out: npt.NDArray[np.bool_]) -> dict[int, Repeat]:
    """Places of the training rows whose prompt stands in a held-out row, with the first that has it.

    ``prompts``: prompt_key of each row [rows]; ``held_out``: whether it is [rows].
    """
    kept = np.flatnonzero(held_out)
    keys, first = np.unique(prompts[kept], return_index=True)
    found: dict[int, Repeat] = {}
    for place in np.flatnonzero(~held_out & np.isin(prompts, keys)).tolist():
        original = kept[first[np.searchsorted(keys, prompts[place])]]
        found[place] = Repeat(int(original), 1.0, held_out=True)
    return found


def exact(keys: Hashes, skip: npt.NDArray[np.bool_] | None = None) -> dict[int, Repeat]:
    """Places of the rows whose key stood before, with the first that has it.

    ``keys``: content_key of each row [rows]; ``skip``: rows that are not looked at [rows].

    64-bit keys: among a million rows, two different ones collide with probability 3e-8. Holds 24 bytes per row, a
    third of what np.unique would.
    """
    order = np.argsort(keys, kind="stable")  # equal keys side by side, the earliest row first
    if skip is not None and skip.any():
        order = order[~skip[order]]
    ordered = keys[order]
    repeats: dict[int, Repeat] = {}
    for index in np.flatnonzero(ordered[1:] == ordered[:-1]):
        before, place = int(order[index]), int(order[index + 1])
        repeats[place] = repeats.get(before) or Repeat(before, 1.0, is_exact=True)
    return dict(sorted(repeats.items()))


def signatures(conversations: Sequence[Conversation]) -> Signatures:
    """MinHash signature of each conversation, uint32 [rows, PERMUTATIONS]."""
    found = [_minhash(_shingles(each)).hashvalues for each in conversations]
    return np.stack(found) if found else np.zeros((0, PERMUTATIONS), np.uint32)


def near(parts: Iterable[Signatures], threshold: float, skip: Container[int]) -> dict[int, Repeat]:
    """Places of the rows that nearly repeat one that stays, with the most similar of those.

    ``parts``: signatures of all rows in order, in any number of pieces; ``skip``: places that are out already.
    """
    from datasketch import MinHashLSH  # here and below: it brings scipy, which few preparations need

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
    staying: dict[int, npt.NDArray[np.uint32]] = {}
    found: dict[int, Repeat] = {}
    for place, signature in enumerate(row for part in parts for row in part):
        if place in skip:
            continue
        sketch = _of(signature)
        shares = {other: _share(staying[other], signature) for other in index.query(sketch)}
        closest = min(shares, key=lambda other: (-shares[other], other), default=None)
        if closest is not None and shares[closest] >= threshold:
            found[place] = Repeat(closest, shares[closest])
        else:
            index.insert(place, sketch)
            staying[place] = signature
    return found


def _shingles(conversation: Conversation) -> Hashes:
    """Hashes of all three-word runs; of the whole text if it is shorter, or holds no word (emoji, signs)."""
    text = " ".join(text for message in conversation.messages for text in texts_of(message))
    hashed = word_hashes(words(text) or [text])
    return ngram_hashes(hashed, min(SHINGLE_WORDS, len(hashed)))


@cache
def _permutations() -> npt.NDArray[np.uint32]:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, scheme=SCHEME).permutations  # type: ignore[no-any-return]


def _minhash(shingles: Hashes) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, permutations=_permutations(), scheme=SCHEME, hashfunc=int)
    sketch.update_batch((shingles & LOW_BITS).tolist())
    return sketch


def _of(signature: npt.NDArray[np.uint32]) -> Any:
    from datasketch import MinHash

    return MinHash(permutations=_permutations(), hashvalues=signature, scheme=SCHEME)


def _share(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> float:
    return float(np.count_nonzero(one == other)) / PERMUTATIONS
