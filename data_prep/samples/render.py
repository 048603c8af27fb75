"""The stage that chooses the words of a sample: the record's own, or its source's style (styles.py)."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, Part
from data_prep.samples import loaded, styles
from data_prep.samples.draft import Draft
from data_prep.samples.styles import Style


@dataclass(frozen=True)
class Render:
    """A record in the style of its source. Rejects what ``styles.write`` does."""

    style: Style | None = None
    """None: each record by itself, in its own words."""
    exemplars: str = ""
    """File of the pools that a few-shot style draws from (exemplars.py)."""

    def __call__(self, record: Record, counts: Counts) -> Draft:
        if self.style is None:
            return Draft(record)
        pools = loaded.pools(self.exemplars) if self.style.few_shot else {}
        return Draft(record, styles.write(self.style, record, pools))

    def identity(self) -> Part:
        return {"source": {"style": self.style.identity()}} if self.style else {}

    @property
    def few_shot(self) -> bool:
        """Whether it needs exemplars."""
        return self.style is not None and self.style.few_shot

    @property
    def places(self) -> frozenset[str]:
        """Fields of a conversation that come to stand in samples, beside its messages."""
        return self.style.places if self.style else frozenset()
