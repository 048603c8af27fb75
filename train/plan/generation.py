"""What answering held-out samples costs under ZeRO-3: every rank gathers the whole model for every new token.

A cache of keys and values saves compute, not this: a token passes all layers, and under stage 3 a layer's weights are
on all ranks. One rank and the other stages hold the weights and gather nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conf.errors import ConfigError
from conf.schema import RunConfig
from conf.whole_numbers import ceil_div
from data_prep.corpus.identity import leaves
from train.families import shape_of
from train.plan.activations import ELEMENT
from train.plan.communication import ASSUMED_LINK_EFFICIENCY
from train.plan.memory import number, trained_and_frozen

MOST_SECONDS = 600.0
"""The longest that all GPUs may be kept answering in one evaluation: beyond it, one process answers after the run."""
WORTH_SAYING_SECONDS = 1.0
NVLINK = {"h100": 450e9, "h200": 450e9, "a100": 300e9}
"""Bytes per second into one GPU from the others of its node (data sheets: half of both directions)."""


@dataclass(frozen=True)
class Generation:
    """Of one evaluation, at most: no answer ends before ``evaluation.max_new_tokens``."""

    rows: int
    """Samples that are answered."""
    gathered: float
    """Bytes of weights that a rank makes whole for one token."""
    tokens: int
    """Tokens one after the other: a batch's, for as many batches as a rank has."""
    seconds: float
    """The time of the gathers alone."""

    @property
    def sentence(self) -> str:
        return (
            f"under zero=3 every new token of an answer gathers {self.gathered / 1e9:.1f} GB of weights, so the "
            f"answers to {self.rows} held-out rows take up to about {span(self.seconds)} per evaluation"
        )


def generation(cfg: RunConfig, model: Mapping[str, Any], *, nodes: int, per_node: int) -> Generation | None:
    """The cost of the answers of ``cfg`` on ``nodes`` x ``per_node`` ranks; None where none gathers or nobody asks.

    Every source with held-out rows is taken to have ``evaluation.generate_rows`` of them, and every corpus of
    ``evaluation.sources`` to be one source. All cards of a node bring in what it lacks; inside, NVLink does.
    """
    asked, world = cfg.evaluation, nodes * per_node
    rows = asked.generate_rows * (len(asked.sources) + held_out_sources(cfg))
    evaluates = asked.at_start or asked.at_end or asked.every_steps > 0
    if world == 1 or number(cfg.zero.stage) != 3 or not (rows and evaluates):
        return None
    trained, frozen = trained_and_frozen(cfg, shape_of(model))
    gathered = ELEMENT[cfg.model.dtype] * (trained + frozen)
    between = gathered * (nodes - 1) / nodes / (cfg.cluster.node_gbit_per_s * 1e9 / 8)
    inside = gathered * (per_node - 1) / per_node / NVLINK[cfg.cluster.gpu]
    tokens = ceil_div(ceil_div(rows, asked.batch_size), world) * asked.max_new_tokens
    return Generation(rows, gathered, tokens, tokens * max(between, inside) / ASSUMED_LINK_EFFICIENCY)


def held_out_sources(cfg: RunConfig) -> int:
    return sum(bool(leaf.validation_fraction or leaf.validation) for leaf in leaves(cfg.data.sources).values())


def refuse_slow_answers(cfg: RunConfig, answers: Generation | None) -> None:
    """Raise ConfigError if the answers of one evaluation would take longer than MOST_SECONDS."""
    if answers is None or answers.seconds <= MOST_SECONDS:
        return
    raise ConfigError(
        f"evaluation.generate_rows: {answers.sentence} (cluster.node_gbit_per_s={cfg.cluster.node_gbit_per_s:g}), and "
        f"{span(MOST_SECONDS)} is the most that all ranks answer; set evaluation.generate_rows=0, and after the run "
        f"let one process answer: `python -m train.evaluate run_dir={cfg.run_dir} "
        f"generate_rows={cfg.evaluation.generate_rows}`; or lower "
        f"evaluation.max_new_tokens={cfg.evaluation.max_new_tokens}"
    )


def span(seconds: float) -> str:
    """90.0 -> 90 s, 600.0 -> 10 min, 9000.0 -> 2.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
