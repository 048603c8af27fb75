"""Token prefixes that many samples of a source begin with: template text, system prompts, task definitions.

A row that holds several such samples computes their prefix once (``data.share_prefix``), so what a prefix is worth is
the number of tokens a row saves: n samples of d shared tokens save (n - 1) * d. Samples that share little may split
into groups that share more; a trie over a sample of the rows finds the division that saves most.

    Below is an instruction that describes a task -+- , paired with an input ... ### Instruction:\\n   8 of 20 in a row
                                                   +- . Write a response ...      ### Instruction:\\n   12 of 20
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]

EXAMINED = 8_192
"""Samples the prefixes are found in: the first of the source, so that they are the same for any number of processes."""
LONGEST = 4_096
"""Tokens of a sample that are looked at."""
SHORTEST = 8
"""Tokens below which a prefix is not worth the segment it costs."""


@dataclass(frozen=True)
class Prefixes:
    """The shared prefixes of one source, longest first."""

    ids: tuple[tuple[int, ...], ...] = ()
    _arrays: tuple[npt.NDArray[np.int32], ...] = field(default=(), compare=False)

    def of(self, ids: Tokens, mask: Tokens) -> tuple[int, int]:
        """(index, tokens) of the longest one that this sample begins with and may share; (-1, 0) if there is none."""
        may_share = shareable(mask)
        for index, prefix in enumerate(self._arrays):
            if len(prefix) <= may_share and np.array_equal(ids[: len(prefix)], prefix):
                return index, len(prefix)
        return -1, 0


def shareable(mask: Tokens) -> int:
    """Tokens at the start of a sample that it may share with others: up to the one before the first target's
    predecessor, because the prefix's last position would otherwise have to predict several targets."""
    targets = np.flatnonzero(mask)
    return max(0, int(targets[0]) - 1) if len(targets) else 0


def find(samples: Iterable[tuple[Tokens, Tokens]], *, seq_len: int) -> Prefixes:
    """The prefixes worth sharing among ``samples``, (ids int32 [n], loss mask uint8 [n]) each, in rows of ``seq_len``.

    Looks at the first ``EXAMINED`` only.
    """
    examined = list(islice(samples, EXAMINED))
    if not examined:
        return Prefixes()
    heads = [np.asarray(ids)[: min(shareable(mask), LONGEST)].tolist() for ids, mask in examined]
    mean = sum(len(ids) for ids, _ in examined) / len(examined)
    per_row = seq_len / mean / len(examined)
    found = sorted(map(tuple, _best(sorted(heads), 0, per_row).prefixes), key=lambda ids: (-len(ids), ids))
    return Prefixes(tuple(found), tuple(np.array(each, np.int32) for each in found))


@dataclass(frozen=True)
class _Division:
    """How samples that begin alike are best divided among prefixes."""

    count: int
    saved: float
    """Tokens per row."""
    prefixes: tuple[list[int], ...] = ()


def _best(heads: Sequence[list[int]], depth: int, per_row: float) -> _Division:
    """The best division of sorted ``heads``, which agree in their first ``depth`` tokens.

    ``per_row``: how many samples of a row one of them stands for. Nodes of the trie with one child that matters are
    walked in a loop: heads of one token repeated would be as deep a recursion as they are long.
    """
    path: list[tuple[list[int], int]] = []
    while True:
        depth = _agree(heads, depth)
        groups = _by_next_token(heads, depth)
        large = [group for group in groups if len(group) * per_row > 1.0]
        path.append((heads[0][:depth], len(heads) - sum(map(len, large))))
        if len(large) != 1:
            break
        heads = large[0]
    below = [_best(group, depth, per_row) for group in large]
    for prefix, others in reversed(path):
        below = [_divided(prefix, others, below, per_row)]
    return below[0]


def _divided(prefix: list[int], others: int, below: Sequence[_Division], per_row: float) -> _Division:
    """The node of ``prefix``: each division below it stays apart where that saves more; the rest share ``prefix``."""
    count = others + sum(each.count for each in below)
    apart = [each for each in below if each.saved > each.count * per_row * len(prefix)]
    saved, chosen = sum(each.saved for each in apart), [ids for each in apart for ids in each.prefixes]
    together = ((count - sum(each.count for each in apart)) * per_row - 1.0) * len(prefix)
    if together <= 0 or len(prefix) < SHORTEST:
        return _Division(count, saved, tuple(chosen))
    return _Division(count, saved + together, (*chosen, prefix))


def _agree(heads: Sequence[list[int]], depth: int) -> int:
    """Tokens that all heads begin with; of sorted ones, the first and the last decide."""
    first, last = heads[0], heads[-1]
    end = min(len(first), len(last))
    while depth < end and first[depth] == last[depth]:
        depth += 1
    return depth


def _by_next_token(heads: Sequence[list[int]], depth: int) -> list[list[list[int]]]:
    """Groups that agree in the next token too; heads that end here are in none."""
    longer = (head for head in heads if len(head) > depth)
    return [list(group) for _, group in groupby(longer, key=lambda head: head[depth])]
