"""Which records are held out for validation: decided by their prompt alone, or by their file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.rows.conversation import prompt_key
from data_prep.rows.record import Record
from data_prep.rows.stage import Part

FEWEST = 8
"""Held-out rows that a source of a few dozen rows gets at least: what an evaluation answers by default."""
AT_MOST = 10
"""A floor never holds out more than one row in so many."""


@dataclass(frozen=True)
class Split:
    """A source's ``validation_fraction``, or its ``validation`` if it has one."""

    validation_fraction: float
    validation: str | None = None
    files: frozenset[str] = frozenset()
    """Raw files that ``validation`` stands for, as the MANIFEST names them."""

    def holds_out(self, record: Record) -> bool:
        """Whether its file is one of ``validation``, or the hash of its prompt in the first part of all hashes."""
        if self.validation is not None:
            return record.file in self.files
        return prompt_key(record.conversation) < self.bound

    @property
    def bound(self) -> int:
        """The first hash that is not held out."""
        return int(self.validation_fraction * 2**64)

    def raised(self, keys: npt.NDArray[np.uint64]) -> int:
        """``bound``, raised for a source so small that too few of its prompts' hashes ``keys`` lie below it.

        Then the smallest hashes are held out: FEWEST, or a tenth of the rows if that is less. Equal prompts stay on
        one side. A fraction of 0 holds nothing out.
        """
        wanted = min(FEWEST, len(keys) // AT_MOST)
        if self.validation_fraction == 0 or np.count_nonzero(keys < self.bound) >= wanted:
            return self.bound
        raised = int(np.partition(keys, wanted - 1)[wanted - 1]) + 1
        too_many = np.count_nonzero(keys < raised) > len(keys) // 2  # one prompt in most of the rows
        return self.bound if too_many else raised

    def identity(self) -> Part:
        named = {"validation": self.validation} if self.validation is not None else {}
        return {"source": {"validation_fraction": self.validation_fraction, **named}}
