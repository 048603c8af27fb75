"""The samples of one step dealt anew to rows, so that those that begin alike meet and compute the beginning once.

A step's samples are decided before (``data_prep/stream/windows.py``) and stay the same, so nothing changes of what the
step is a function of: the same samples make the same sums, in fewer rows. An example: rows hold 12 tokens; a, c and d
begin with the same 4 tokens, c and d also with the 3 after them.

    a 7   b 5   c 9   d 8   e 2
    rows of the window    a b | c e | d    31 tokens
    grouped               b a | e c d      d leaves 7 tokens to c: 2 + 9 + 1; a could leave 4, but finds no room there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np

from data_prep.stream.forest import Forest
from data_prep.stream.packing import best_fit_decreasing
from data_prep.stream.steps import Part
from data_prep.stream.windows import Ints, Window

GOLDEN = (5**0.5 - 1) / 2


def regrouped(parts: Sequence[Part], forest: Forest, capacity: int) -> Window:
    """The samples of ``parts``, which are those of one step, in at most as many rows of ``capacity`` tokens."""
    source, row, tokens, targets, prefix = (
        np.concatenate([getattr(part.window, name)[part.samples] for part in parts])
        for name in ("source", "row", "tokens", "targets", "prefix")
    )
    weights = None
    if parts[0].window.weights is not None:
        weights = np.concatenate([np.asarray(part.window.weights)[part.samples] for part in parts])
    rows = _packed(tokens, prefix, forest, capacity)
    if len(rows) > sum(part.last - part.first for part in parts):
        rows = _as_they_were(parts)
    spared = [[of_sample[1] for of_sample in forest.shared_in(prefix[each].tolist())] for each in rows]
    rows, spared = _mixed(rows, spared, tokens)
    order = np.array(list(chain.from_iterable(rows)), np.int64)
    return replace(
        parts[-1].window,
        ends=np.cumsum([0, *map(len, rows)]),
        source=source[order],
        row=row[order],
        tokens=tokens[order],
        targets=targets[order],
        prefix=prefix[order],
        spared=np.array(list(chain.from_iterable(spared)), np.int64),
        weights=None if weights is None else weights[order],
        forest=forest,
    )


def _packed(tokens: Ints, prefix: Ints, forest: Forest, capacity: int) -> list[list[int]]:
    """Samples in rows, from the leaves of the forest to its roots: those that have most in common meet first.

    What begins with a prefix and fits into a row beside it becomes one piece, as few as they need; to the prefix that
    this one begins with, it is a sample like any other. Only prefixes that several samples of the step have count.
    """
    parents, which = _met(prefix, forest)
    sizes = {number: forest.sizes[number] for number in parents}
    pieces: dict[int, list[tuple[int, list[int]]]] = {number: [] for number in parents}
    """Of every prefix: (tokens after it, samples) of what begins with it."""
    for sample, (number, length) in enumerate(zip(which, tokens.tolist(), strict=True)):
        pieces[number].append((length - sizes[number], [sample]))
    for number in sorted(parents, reverse=True):
        beside = pieces[number]
        joined = best_fit_decreasing([length for length, _ in beside], capacity - sizes[number])
        fitting = [
            (sum(beside[each][0] for each in some), list(chain.from_iterable(beside[each][1] for each in some)))
            for some in joined
        ]
        if not number:
            return [samples for _, samples in fitting]
        parent = parents[number]
        pieces[parent] += [(length + sizes[number] - sizes[parent], samples) for length, samples in fitting]
    return []


def _met(prefix: Ints, forest: Forest) -> tuple[dict[int, int], list[int]]:
    """The prefixes that several samples have, each with the longest of them that it begins with; and each sample's."""
    numbers, places, counts = np.unique(prefix, return_inverse=True, return_counts=True)
    having = {0: 2}
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        while number:
            having[number] = having.get(number, 0) + count
            number = forest.parents[number]

    def nearest(number: int) -> int:
        while having[number] < 2:
            number = forest.parents[number]
        return number

    parents = {number: nearest(forest.parents[number]) for number, count in having.items() if count > 1}
    longest = np.array([nearest(number) for number in numbers.tolist()], np.int64)
    return parents, longest[places].tolist()


def _as_they_were(parts: Sequence[Part]) -> list[list[int]]:
    sizes = np.concatenate([np.diff(part.window.ends[part.first : part.last + 1]) for part in parts])
    return [list(range(start, end)) for start, end in pairwise(np.cumsum([0, *sizes]).tolist())]


def _mixed(rows: list[list[int]], spared: list[list[int]], tokens: Ints) -> tuple[list[list[int]], list[list[int]]]:
    """The rows in an order in which all neighbouring ones together attend to about as much, however many they are.

    Rows of one task have samples of about one length; a rank that got a task of long ones would keep the others
    waiting. Steps of the golden ratio visit the rows, sorted by their pairs of attention, evenly (Weyl 1916).
    """
    pairs = []
    for samples, left in zip(rows, spared, strict=True):
        whole, gone = tokens[samples], np.array(left)
        pairs.append(int((whole * (whole + 1) - gone * (gone + 1)).sum()))
    by_pairs = np.argsort(pairs, kind="stable")
    visits = np.argsort(np.argsort(np.arange(len(rows)) * GOLDEN % 1.0, kind="stable"), kind="stable")
    order = by_pairs[visits].tolist()
    return [rows[each] for each in order], [spared[each] for each in order]
