"""The contract of a stage: one thing that happens to every record of a source on its way to a sample.

A stage is a frozen dataclass of plain values, so that it travels to the preparation processes. It offers
``identity()``, and one of two ways to work:

- ``stage(record, counts)`` returns the record that the next stage gets, or raises Rejected; a list of several goes
  on one by one;
- ``stage.batch(records, counts)`` does the same for many records at once, where that is faster (a tokenizer, a model);
  it returns one outcome per record, in order: the next stage's record (or a list), or the Rejected that says why there
  is none.

What happens must depend on the record and the stage's values alone, never on the batch or the process: the corpus is
the same for any number of processes. To add a stage, write its class in a file of the right room and add one line to
the list in data_prep/stages.py; identity, counters, quarantine, preview and restart follow from that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from data_prep.rows.conversation import Rejected

Part = Mapping[str, Mapping[str, Any]]
"""A stage's part of the corpus identity, JSON-able: under ``source`` what one source sets, under ``data`` what all
sources share. A setting that is not used is absent, so that a corpus without it keeps its name."""


COUNTERS = ("rejected", "normalised", "found", "unread")


@dataclass
class Counts:
    """What happened to the records of a block or a source."""

    rows: int = 0
    """Records that went in."""
    truncated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    normalised: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """Records in which a cleaning rule found something, whether the rule acts or not."""
    unread: Counter[str] = field(default_factory=Counter)
    """Records with something under a key that no rule reads, by key."""
    split: int = 0
    """Samples beyond the first of their record."""

    def add(self, other: Counts) -> None:
        """Add the counts of another block."""
        self.rows += other.rows
        self.truncated += other.truncated
        self.split += other.split
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))


class HasIdentity(Protocol):
    """Whatever changes the corpus."""

    def identity(self) -> Part:
        """Its part of the corpus identity."""


class RecordStage(HasIdentity, Protocol):
    """A stage that takes one record at a time."""

    def __call__(self, record: Any, counts: Counts, /) -> Any:
        """The record for the next stage. Raises Rejected."""


class BatchStage(HasIdentity, Protocol):
    """A stage that takes many records at once."""

    def batch(self, records: Sequence[Any], counts: Counts, /) -> Sequence[Any]:
        """The next stage's record, or a Rejected, for each of ``records`` in order."""


Stage = RecordStage | BatchStage


def apply(stages: Iterable[Stage], records: Sequence[Any], counts: Counts) -> list[tuple[int, Any]]:
    """What the last stage made of each record, or the Rejected of the stage that stopped it; in order.

    Each with the record's place in ``records``, because a stage may make several of one.
    """
    places, outcomes = list(range(len(records))), list(records)
    for stage in stages:
        going = [each for each in outcomes if not isinstance(each, Rejected)]
        made = list(_outcomes(stage, going, counts))
        if len(going) < len(outcomes):
            further = iter(made)
            made = [each if isinstance(each, Rejected) else next(further) for each in outcomes]
        if list in map(type, made):
            several = [each if isinstance(each, list) else [each] for each in made]
            places = [place for place, each in zip(places, several, strict=True) for _ in each]
            made = [one for each in several for one in each]
        outcomes = made
    return list(zip(places, outcomes, strict=True))


def _outcomes(stage: Stage, records: Sequence[Any], counts: Counts) -> Sequence[Any]:
    if hasattr(stage, "batch"):  # isinstance of a Protocol would cost as much as cleaning a record
        return cast(BatchStage, stage).batch(records, counts)
    outcomes: list[Any] = []
    for record in records:
        try:
            outcomes.append(stage(record, counts))
        except Rejected as rejected:
            outcomes.append(rejected)
    return outcomes


def merged(parts: Iterable[Part]) -> dict[str, dict[str, Any]]:
    """One identity of many parts."""
    whole: dict[str, dict[str, Any]] = {"source": {}, "data": {}}
    for part in parts:
        for scope, settings in part.items():
            whole[scope] |= settings
    return whole
