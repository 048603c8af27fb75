"""Rows that were rejected, as a message: the first of them, what its row has, and the way out for every reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from conf.schema import SourceConfig
from data_prep.advice import detect
from data_prep.advice.reasons import advice
from data_prep.rows import files
from data_prep.rows.conversation import Rejected

Line = Mapping[str, Any]
"""A line of quarantine.jsonl."""
LOOKED_AT = 20
"""Rejected rows from which a format is detected."""
OF_SHAPE = frozenset({
    "missing_field", "non_string_field", "empty_field", "wrong_field_count", "non_mapping_turn", "unknown_role",
    "no_messages", "needs_chat_template",
})  # fmt: skip
"""Reasons that another format or other fields may remove."""


def over_budget(source: str, rows: int, rejected: Counter[str], budget: float) -> str:
    """The head of the message for a source that lost too many of its ``rows``."""
    lost = rejected.total()
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.most_common())
    over = f", over data.bad_row_budget={budget}" if lost > budget * rows else ""
    return f"data.sources.{source}: {lost:,} of {rows:,} rows ({lost / rows:.1%}) were rejected{over}: {reasons}"


def explained(source: str, leaf: SourceConfig, rejected: Counter[str], lines: Iterable[Line]) -> Iterator[str]:
    """Lines that say more of rejected rows: the way out per reason, the first row, and what would read such rows.

    ``leaf``: the source's settings, which are not proposed again.
    """
    for reason, count in rejected.most_common():
        yield f"{reason} {count:,}: {advice(reason, source)}"
    looked = list(islice(lines, LOOKED_AT))
    first = looked[0]
    detail = f" ({first['detail']})" if first.get("detail") else ""
    yield f"the first is {place(first)}: {first['reason']}{detail}"
    shaped = [values for line in looked if line["reason"] in OF_SHAPE and (values := _values(line)) is not None]
    if not shaped:
        return
    yield f"such a row has the keys {detect.keys_of(shaped[0])}"
    if (why := detect.unreadable(shaped)) is not None:
        yield why
        return
    fits = [fit for fit in detect.detect(shaped) if not _is_set(fit, leaf)]
    if fits:
        yield f"these settings would read it: {' '.join(fits[0].settings(source))} ({fits[0].evidence})"
    else:
        yield f"no format reads such rows as they are; {named_keys(leaf)}"


def place(line: Line) -> str:
    """Where a rejected row stands: FILE:LINE in JSON lines, else the file and the row from 0."""
    file, row = str(line["file"]), int(line["row"])
    if file.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".tsv")):
        return f"{file}:{row + 1}"
    return f"{file}, row {row}"


def named_keys(leaf: SourceConfig) -> str:
    return f"name the keys that hold what format={leaf.format} asks for in its fields, or write the rows anew"


def _is_set(fit: detect.Fit, leaf: SourceConfig) -> bool:
    """Whether the source reads its rows so already."""
    same = fit.format == leaf.format and dict(fit.fields) == dict(leaf.fields)
    return same and fit.template in ("auto", leaf.template)


def _values(line: Line) -> dict[str, Any] | None:
    try:
        return files.parse(line["row_text"])
    except Rejected:
        return None
