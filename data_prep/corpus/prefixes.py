"""Token prefixes that samples of a source begin with: template text, system prompts, task definitions, their examples.

Samples of a step that begin alike compute what they have in common once (``data.share_prefix``). Prefixes are a forest:
what all samples of a template begin with, then what those of one task do, then those with the same examples. A sample
names the longest one that it begins with; which of them are worth a place in a row is for the planner of a step to say.

    Below is an instruction that describes a task -+- , paired with an input ... ### Instruction:\\n  -+- Translate ...
                                                   +- . Write a response ...      ### Instruction:\\n
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.stream.forest import parents_of

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]

EXAMINED_TOKENS = 1 << 24
"""Tokens of samples that are compared with each other at once: bounds memory. They are taken in the source's order, so
the prefixes are the same for any number of processes."""
EXAMINED = 65_536
"""Samples that are compared at once, as many as the largest window of the stream has."""
LONGEST = 4_096
"""Tokens of a sample that are looked at."""
SHORTEST = 8
"""Tokens below which it is not worth gathering the keys of a row."""
STEP, SAVED = 4_096, 1
"""Samples of a large step, and the tokens that a prefix must save in one beyond what the one that it begins with saves:
else a MANIFEST would fill with prefixes that two samples of a corpus have."""
MOST_TOKENS = 1 << 19
"""Of all prefixes of a source together, which the MANIFEST holds: those that save least are left out beyond it."""


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of one source, in the order of their ids: one that begins with another comes after it."""

    ids: tuple[tuple[int, ...], ...] = ()

    def of(self, ids: Tokens, mask: Tokens) -> tuple[int, int]:
        """(index, tokens) of the longest one that this sample begins with and may share; (-1, 0) if there is none."""
        head = in_order(ids[: shareable(mask)])
        index = bisect_right(self._texts, head) - 1  # of all that the sample begins with, the longest comes last
        while index >= 0 and not head.startswith(self._texts[index]):
            index = self._parents[index]
        return (index, len(self.ids[index])) if index >= 0 else (-1, 0)

    @cached_property
    def _texts(self) -> list[bytes]:
        return [in_order(each) for each in self.ids]

    @cached_property
    def _parents(self) -> list[int]:
        return parents_of(self.ids)


def in_order(ids: Tokens) -> bytes:
    """Bytes whose order is that of the ids."""
    return np.asarray(ids).astype(">u4").tobytes()


def shareable(mask: Tokens) -> int:
    """Tokens at the start of a sample that it may share with others: up to the one before the first target's
    predecessor, because the prefix's last position would otherwise have to predict several targets."""
    targets = np.flatnonzero(mask)
    return max(0, int(targets[0]) - 1) if len(targets) else 0


def find(samples: Iterable[tuple[Tokens, Tokens]]) -> Prefixes:
    """The prefixes that are worth sharing among ``samples``, (ids int32 [n], loss mask uint8 [n]) each.

    Takes time in proportion to their tokens; holds ``EXAMINED_TOKENS`` and what it has found.
    """
    counts, examined = defaultdict[bytes, int](int), 0
    for block in _blocks(samples):
        examined += len(block)
        for prefix, count in _common(block):
            counts[prefix] += count
        _forget(counts, 2 * MOST_TOKENS)
    worth = dict(_worth(counts, examined))
    _forget(worth, MOST_TOKENS)
    return Prefixes(tuple(sorted(tuple(np.frombuffer(each, ">u4").tolist()) for each in worth)))


def _blocks(samples: Iterable[tuple[Tokens, Tokens]]) -> Iterator[list[bytes]]:
    """What may be shared of each sample, in bytes that are in the order of the ids."""
    block, tokens = list[bytes](), 0
    for ids, mask in samples:
        size = min(shareable(mask), LONGEST)
        if size >= SHORTEST:
            block.append(in_order(ids[:size]))
            tokens += size
        if len(block) >= EXAMINED or tokens >= EXAMINED_TOKENS:
            yield block
            block, tokens = [], 0
    yield block


def _common(heads: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """(prefix, how many have it) of every prefix at which some of ``heads`` part: inner nodes of their trie."""
    heads.sort()
    depths = [agreed(one, other) for one, other in pairwise(heads)]
    begun = [(0, 0)]
    """(tokens, first head) of the nodes that the last head lies below, from the root on."""
    for place, depth in enumerate([*depths, 0]):
        first = place
        while begun[-1][0] > depth:
            tokens, first = begun.pop()
            yield heads[place][: 4 * tokens], place + 1 - first
        if depth >= SHORTEST and begun[-1][0] < depth:
            begun.append((depth, first))


def agreed(one: bytes, other: bytes) -> int:
    """Tokens with which both begin."""
    size = min(len(one), len(other)) // 4
    differs = np.frombuffer(one, np.uint32, size) != np.frombuffer(other, np.uint32, size)
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def _worth(counts: dict[bytes, int], samples: int) -> Iterator[tuple[bytes, int]]:
    """The prefixes that are expected to save ``SAVED`` tokens in a step of ``STEP`` of the ``samples``."""
    above = list[bytes]()
    """Those that are worth it and that the one at hand begins with."""
    for prefix in sorted(counts):
        while above and not prefix.startswith(above[-1]):
            above.pop()
        more = (len(prefix) - len(above[-1] if above else b"")) // 4
        expected = counts[prefix] * min(STEP, samples) / samples
        # All but the first of a step, if there is one, need not compute it.
        if (expected - 1 + math.exp(-expected)) * more >= SAVED:
            above.append(prefix)
            yield prefix, counts[prefix]


def _forget(counts: dict[bytes, int], most: int) -> None:
    """Leave the prefixes that save most, at most ``most`` tokens of them."""
    total = sum(map(len, counts)) // 4
    if total <= most:
        return
    for prefix in sorted(counts, key=lambda each: (counts[each] * len(each), each)):
        total -= len(prefix) // 4
        del counts[prefix]
        if total <= most:
            return
