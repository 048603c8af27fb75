"""First stage: a record's text becomes an object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_prep.rows import files
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, Part


@dataclass(frozen=True)
class Parse:
    """The text as JSON. Rejects bad_utf8, bad_json, not_an_object, wrong_field_count."""

    def __call__(self, record: Record, counts: Counts) -> Record:
        return replace(record, values=files.parse(record.text))

    def identity(self) -> Part:
        return {}
