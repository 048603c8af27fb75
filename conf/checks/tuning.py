"""Rules between the tuning method and the other sections: they follow from the facts of the method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from conf.checks.finding import Finding
from conf.schema.facts import backend_facts
from conf.schema.methods import LoraTuning

if TYPE_CHECKING:
    from conf.schema import RunConfig


def method(cfg: RunConfig) -> Iterator[Finding]:
    """Every broken rule of ``cfg.tuning``."""
    for rule in (_padded_rows, _facts, _lora):
        yield from rule(cfg)


def _padded_rows(cfg: RunConfig) -> Iterator[Finding]:
    """What stands before every sample can stand neither in the middle of a packed row nor before a row of many."""
    method, backend = cfg.tuning.method, cfg.attention.backend
    if cfg.tuning.FACTS.rows != "padded":
        return
    if cfg.data.pack != "none":
        yield Finding(
            ("tuning.method", "data.pack"),
            f"data.pack: {cfg.data.pack} puts several samples into a row, and tuning={method} needs each in a padded "
            "row of its own; use data.pack=none",
        )
    if backend_facts(backend).rows == "packed":
        yield Finding(
            ("tuning.method", "attention.backend"),
            f"attention.backend: {backend} lays samples end to end, and tuning={method} needs each in a padded row of "
            "its own; use attention=sdpa",
        )


def _facts(cfg: RunConfig) -> Iterator[Finding]:
    facts, recompute, decay = cfg.tuning.FACTS, cfg.model.recompute, cfg.optim.weight_decay
    if facts.no_recompute and recompute != "none":
        yield Finding(
            ("tuning.method", "model.recompute"),
            f"model.recompute: {recompute} would {facts.no_recompute}; use model.recompute=none",
        )
    if facts.no_weight_decay and decay:
        yield Finding(
            ("tuning.method", "optim.weight_decay"),
            f"optim.weight_decay: {decay} would {facts.no_weight_decay}; use optim.weight_decay=0",
        )


def _lora(cfg: RunConfig) -> Iterator[Finding]:
    """Settings of this method alone."""
    method = cfg.tuning
    if not isinstance(method, LoraTuning) or cfg.zero.stage != 3:
        return
    if method.variant == "dora" and method.dropout:
        yield Finding(
            ("tuning.dropout", "tuning.variant", "zero.stage"),
            f"tuning.dropout: {method.dropout} makes dora multiply by the base's weights a second time, which zero=3 "
            "has not gathered for that; use tuning.dropout=0, or zero=2",
        )
    if method.quantize != "none":
        yield Finding(
            ("tuning.quantize", "zero.stage"),
            f"tuning.quantize: {method.quantize} was asked for with zero=3, which shards weights, and packed 4-bit "
            "weights cannot be sharded by it; use zero=2, or tuning.quantize=none",
        )
