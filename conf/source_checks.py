"""Rules of the tree of sources: what a group may say, what a file must."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from conf.finding import Finding

if TYPE_CHECKING:
    from conf.schema import SourceConfig

LEAF_ONLY = ("format", "path", "style", "select", "rows", "max_epochs")


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
    if node.format in ("sharegpt", "messages") and node.template == "alpaca":
        yield Finding(
            (f"{here}.template", f"{here}.format"),
            f"{here}.template: alpaca holds one question and one answer, {node.format} rows have several turns; "
            f"use template=chat or leave it at auto",
        )
    if node.format in ("sharegpt", "messages") and node.style is not None:
        yield Finding(
            (f"{here}.style", f"{here}.format"),
            f"{here}.style: it writes one question and one answer, {node.format} rows have several turns; take it away",
        )


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
