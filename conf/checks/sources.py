"""Rules of the tree of sources: what a group may say, what a file must."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from conf.checks.finding import Finding

if TYPE_CHECKING:
    from conf.schema import RunConfig, SourceConfig

LEAF_ONLY = ("format", "path", "encoding", "style", "select", "validation", "rows", "max_epochs")


def tree(path: str, nodes: Mapping[str, SourceConfig]) -> Iterator[Finding]:
    """Rules of the source tree below ``path``."""
    if not nodes:
        yield Finding((path,), f"{path}: empty; add a source with +{path}.NAME={{format: alpaca, path: FILE}}")
    if nodes and all(node.weight == 0 for node in nodes.values()):
        yield Finding((path,), f"{path}: every weight is 0, so nothing would be drawn")
    for name, node in nodes.items():
        here = f"{path}.{name}"
        if "." in name:
            yield Finding(
                (path,), f"{here}: a name cannot hold a dot, it separates the levels; use {name.replace('.', '-')}"
            )
        if node.weight is not None and node.rate is not None and node.sources is None:
            yield Finding((here,), f"{here}: weight and rate are both set; keep one of them")
        yield from _leaf(here, node) if node.sources is None else _inner(here, node)


def _leaf(here: str, node: SourceConfig) -> Iterator[Finding]:
    for key in ("format", "path"):
        if not getattr(node, key):
            example = "alpaca" if key == "format" else "data/rows.jsonl"
            yield Finding(
                (f"{here}.{key}",), f"{here}.{key}: missing; a source needs it, such as {here}.{key}={example}"
            )
    if node.encoding is not None and not _is_text_encoding(node.encoding):
        yield Finding(
            (f"{here}.encoding",),
            f"{here}.encoding: {node.encoding!r} is no text encoding; such are utf-8, utf-16, latin-1, cp1252",
        )


def date(cfg: RunConfig) -> Iterator[Finding]:
    """``data.template_date`` is a day of the calendar."""
    given = cfg.data.template_date
    try:
        datetime.date.fromisoformat(given or "2000-01-01")
        right = given is None or len(given) == len("2000-01-01")
    except ValueError:
        right = False
    if not right:
        key = "data.template_date"
        yield Finding((key,), f"{key}: {given!r} is no day; write it as YYYY-MM-DD, such as 2026-01-31")


def _is_text_encoding(name: str) -> bool:
    try:
        "a".encode(name)
    except (LookupError, ValueError):
        return False
    return True


def _inner(here: str, node: SourceConfig) -> Iterator[Finding]:
    extra = [key for key in LEAF_ONLY if getattr(node, key) is not None]
    extra += ["template"] if node.template != "auto" else []
    extra += ["validation_fraction"] if node.validation_fraction else []
    extra += ["fields"] if node.fields else []
    if extra:
        yield Finding(
            (here,), f"{here}: has sources below it, so {', '.join(extra)} must stand at each of those instead"
        )
    yield from tree(f"{here}.sources", node.sources or {})
