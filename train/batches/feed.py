"""Makes a step into this rank's micro-batches. All rows reach a model through this module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from conf.whole_numbers import ceil_div
from data_prep.corpus.shards import Split
from data_prep.stream.steps import most_samples
from data_prep.stream.stream import GlobalStep, PackedRow, rank_rows
from train.batches.batch import Batch
from train.batches.collate import collate
from train.batches.slices import share
from train.ranks.group import Ranks


@dataclass(frozen=True)
class Feed:
    splits: Sequence[Split]
    """In the order of ``Stream.names``."""
    layout: Literal["flat", "padded"]
    """The layout that the attention backend takes (train/attention/types.py)."""
    pad_id: int
    ranks: Ranks
    micro_size: int = 1
    """Rows per micro-batch."""
    dealt: Literal["blocks", "turns"] = "blocks"
    """blocks: a rank gets the rows of its micro-batches as one block. turns: micro-batches go to the ranks in turn, so
    that they are the same for any number of ranks, and the first ones of all ranks are the first ones of the step."""

    @property
    def _block(self) -> int:
        return self.micro_size if self.dealt == "turns" else 0

    def batch(self, rows: Sequence[PackedRow]) -> Batch:
        """The tensors of ``rows`` on this rank's device; where ranks share a row, this rank's slice of it.

        It is cut on the host, so that nothing else travels and the cut reads nothing back from a GPU.
        """
        whole = collate(rows, self.splits, layout=self.layout, pad_id=self.pad_id)
        return share(whole, self.ranks).to(self.ranks.device)

    def batches(self, step: GlobalStep) -> Iterator[Batch]:
        """This rank's micro-batches of ``step``. Every rank has the same number; the last may have no rows."""
        rows = rank_rows(step, self.ranks.reader, self.ranks.readers, self._block)
        for first in range(0, self.micro_batches(step) * self.micro_size, self.micro_size):
            yield self.batch(rows[first : first + self.micro_size])

    def micro_batches(self, step: GlobalStep) -> int:
        """Of each rank in this step: fewer where samples share prefixes."""
        return ceil_div(len(step.rows), self.ranks.readers * self.micro_size)

    def most_samples(self, step: GlobalStep) -> int:
        """The largest number of samples of ``step`` that one rank has."""
        return most_samples(step, self.ranks.readers, self._block)
