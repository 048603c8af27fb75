"""``format: auto``: a source's format, fields and template from its first rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from conf.errors import BadData
from conf.schema import SourceConfig
from data_prep.advice import detect
from data_prep.advice.detect import Fit
from data_prep.disk import folders
from data_prep.rows import files, hub, raw
from data_prep.rows.conversation import Rejected

AUTO = "auto"
LOOKED_AT = 100
"""Rows that decide."""


def recognised(leaf: SourceConfig, key: str) -> SourceConfig:
    """``leaf`` with the format that its rows have, if it is ``auto``; what the config says itself wins.

    ``key``: the source's place in the config. Raises MissingInput (the file), BadData (no format reads the rows).
    """
    if leaf.format != AUTO:
        return leaf
    fit = _fit(leaf, key)
    template = fit.template if leaf.template == "auto" else leaf.template
    return replace(leaf, format=cast(Any, fit.format), fields={**fit.fields, **leaf.fields}, template=template)


def evidence(leaf: SourceConfig, key: str) -> Iterator[str]:
    """How a source with ``format: auto`` is read and why, as a sentence."""
    if leaf.format == AUTO:
        fit = _fit(leaf, key)
        settings = " ".join(word.strip("'").removeprefix("data.sources.x.") for word in fit.settings("x"))
        yield f"{key}: read with {settings} ({fit.evidence})"


def _fit(leaf: SourceConfig, key: str) -> Fit:
    if hub.is_hub(str(leaf.path)):
        return _best(hub.pinned(str(leaf.path), key), leaf.encoding, 0, key)
    found = files.look(str(leaf.path), f"{key}.path")
    folders.require_training(found, str(leaf.path), f"{key}.path")
    return _best(str(found.files[0]), leaf.encoding, found.files[0].stat().st_mtime_ns, key)


@lru_cache(maxsize=256)
def _best(name: str, encoding: str | None, modified_ns: int, key: str) -> Fit:
    rows = list(_first_rows(name, encoding))
    fits = detect.detect(rows)
    if fits:
        return fits[0]
    if not rows:
        raise BadData(f"{name} ({key}.path): it has no rows that are JSON objects or lines of a table.")
    why = detect.unreadable(rows)
    why = why or f"no format reads rows with the keys {detect.keys_of(rows[0])}; name them in {key}.fields"
    raise BadData(f"{name} ({key}.format=auto): {why}.")


def _first_rows(name: str, encoding: str | None) -> Iterator[dict[str, Any]]:
    for record in islice(raw.rows(name, encoding), LOOKED_AT):
        try:
            yield files.parse(record.text)
        except Rejected:
            continue  # named when the corpus is prepared
