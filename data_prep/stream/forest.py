"""The token prefixes that samples of all sources begin with, and what samples of one row have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class RowsWithPrefixes(Protocol):
    """The part of a prepared split that grouping needs."""

    @property
    def shared(self) -> NDArray[np.integer[Any]]: ...
    @property
    def prefixes(self) -> tuple[tuple[int, ...], ...]: ...


@dataclass(frozen=True)
class Forest:
    """The prefixes of all sources, numbered in the order of their ids; number 0 is no prefix."""

    sizes: list[int]
    """Tokens of each."""
    parents: list[int]
    """The longest other one that each begins with, which comes before it; 0: none."""
    of_source: list[NDArray[np.int64]]
    """Of every source, the number of each of its own prefixes, by its number in the split: 0 is none there too."""

    @classmethod
    def of(cls, splits: Sequence[RowsWithPrefixes]) -> Forest:
        """Sources may have the same prefixes: tasks in several styles, templates of several tasks."""
        ids = sorted({prefix for split in splits for prefix in split.prefixes})
        number = {prefix: place for place, prefix in enumerate(ids, 1)}
        return cls(
            [0, *map(len, ids)],
            [0, *(parent + 1 for parent in parents_of(ids))],
            [np.array([0, *(number[prefix] for prefix in split.prefixes)], np.int64) for split in splits],
        )

    def shared_in(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """For samples of a row, by their prefixes: (the earlier one that it has most in common with, these tokens)."""
        first_with = dict[int, int]()
        found = []
        for place, own in enumerate(numbers):
            number = own
            while number and number not in first_with:
                first_with[number] = place
                number = self.parents[number]
            found.append((first_with[number], self.sizes[number]) if number else (place, 0))
        return found


def parents_of(ids: Sequence[Sequence[int]]) -> list[int]:
    """For each of ``ids``, which are in order, the longest other one that it begins with; -1: there is none."""
    parents, open_ones = list[int](), list[int]()
    for index, own in enumerate(ids):
        while open_ones and tuple(own[: len(ids[open_ones[-1]])]) != tuple(ids[open_ones[-1]]):
            open_ones.pop()
        parents.append(open_ones[-1] if open_ones else -1)
        open_ones.append(index)
    return parents
