"""The stage, recomputation and micro-batch of a run: the fastest that fits with a margin, and its neighbours.

Deterministic in the config, the model's shape, the number of ranks and the corpus's share of targets, so that every
rank and every attempt finds the same; a resumed run keeps what its run.yaml says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from conf.errors import ConfigError
from conf.schema import RunConfig
from conf.whole_numbers import ceil_div
from train.families import shape_of
from train.plan.activations import Recompute
from train.plan.communication import exposed, slower_links
from train.plan.memory import GIB, Memory, memory, number, readers, slice_tokens, trained_and_frozen

MARGIN = 0.05
"""Share of the device's memory that a chosen plan leaves free: the formulas' own error, and rows with more targets."""
MOST_TOKENS = 16384
"""Tokens per micro-batch beyond which a larger one gains nothing: matrices are large enough."""
LAUNCH_TOKENS = 400
"""Tokens whose time the launches of a micro-batch cost: of the order that speed.json's last constant gives for 8 B."""
GATHER = 0.03
"""What stage 3 costs where its traffic hides: an estimate."""
SAME = 0.01
"""Differences of cost below this are not worth a word."""
SHARE: dict[Recompute, float] = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Blocks that are computed twice."""
Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Option:
    stage: int
    recompute: Recompute
    micro: int
    memory: Memory
    cost: float
    """Time per token, 1 being no recomputation, no sharded weights and no launches."""
    fits: bool

    @property
    def name(self) -> str:
        return f"zero={self.stage} recompute={self.recompute} micro={self.micro}"

    def against(self, chosen: Option, limit_gib: float) -> str:
        """Why ``chosen`` was taken and not this one."""
        if not self.fits:
            return f"over the {limit_gib * (1 - MARGIN):.1f} it may use"
        slower = self.cost / chosen.cost - 1
        if abs(slower) < SAME:
            return "fits as well"
        return f"fits, but is about {slower:.0%} slower" if slower > 0 else f"fits, and is about {-slower:.0%} faster"


def cost(cfg: RunConfig, *, trained: int, total: int) -> float:
    """Relative time per token of ``cfg``: recomputation, traffic that does not hide, launches."""
    tokens = slice_tokens(cfg, number(cfg.batch.micro_size) * cfg.data.seq_len)
    outside = exposed(cfg, trained=trained, total=total)
    if cfg.zero.stage != 3:  # whose whole traffic is in exposed
        outside += slower_links(cfg, trained=trained, total=total)
    inside = {2: 0.005, 3: GATHER}.get(number(cfg.zero.stage), 0.0)
    again = SHARE[cast(Recompute, cfg.model.recompute)] / 3.0
    return (1.0 + again + max(outside, inside)) * (1.0 + LAUNCH_TOKENS / tokens)


def options(cfg: RunConfig, model: Mapping[str, Any], supervised: float) -> list[Option]:
    """Every combination that the settings left open, judged; settings that are not ``auto`` stay as they are."""
    shape, limit = shape_of(model), cfg.cluster.gpu_memory_gib * GIB * (1.0 - MARGIN)
    trained = trained_and_frozen(cfg, shape)[0]
    found = []
    for stage, recompute, micro in _combinations(cfg):
        trial = with_choice(cfg, stage, recompute, micro)
        used = memory(trial, model, shape, stage=stage, recompute=recompute, supervised=supervised)
        time = cost(trial, trained=trained, total=max(trained, shape.total))
        found.append(Option(stage, recompute, micro, used, time, used.device <= limit))
    return found


def _combinations(cfg: RunConfig) -> Iterator[tuple[int, Recompute, int]]:
    stages = _stages(cfg) if cfg.zero.stage == "auto" else [number(cfg.zero.stage)]
    policies: list[Recompute] = ["none", "selective", "full"]
    chosen = policies if cfg.model.recompute == "auto" else [cfg.model.recompute]
    yield from itertools.product(stages, chosen, _micro_sizes(cfg))


def _stages(cfg: RunConfig) -> list[int]:
    """Stages that the other settings allow: bf16 needs 1 or more, a reduction in bf16 2, offloaded parameters 3.

    On one process 3 has nothing to shard, but 2 keeps a gradient once that 1 in bf16 keeps twice.
    """
    if cfg.zero.offload == "all":
        return [3]
    first = 1 if cfg.model.dtype == "bf16" or cfg.zero.offload == "optimizer" else 0
    first = 2 if cfg.zero.reduce_dtype == "bf16" else first
    alone = cfg.cluster.nodes * cfg.cluster.gpus_per_node == 1
    return list(range(first, 3 if alone else 4))


def _micro_sizes(cfg: RunConfig) -> list[int]:
    """Powers of two up to a rank's share of the global batch and to MOST_TOKENS."""
    if cfg.batch.micro_size != "auto":
        return [cfg.batch.micro_size]
    world = cfg.cluster.nodes * cfg.cluster.gpus_per_node
    rows = ceil_div(number(cfg.batch.global_size), readers(world, cfg.compute.sequence_parallel))
    sizes = [2**power for power in range(rows.bit_length()) if 2**power <= rows]
    return [size for size in sizes if size == 1 or slice_tokens(cfg, size * cfg.data.seq_len) <= MOST_TOKENS]


def choose(found: list[Option]) -> Option | None:
    """The fastest option that fits; of equals the smallest stage, then micro-batch. None: nothing fits."""
    fitting = [option for option in found if option.fits]
    return min(fitting, key=lambda option: (option.cost, option.stage, option.micro)) if fitting else None


def with_choice(cfg: RunConfig, stage: int, recompute: Recompute, micro: int) -> RunConfig:
    return replace(
        cfg,
        zero=replace(cfg.zero, stage=cast(Stage, stage)),
        model=replace(cfg.model, recompute=recompute),
        batch=replace(cfg.batch, micro_size=micro),
    )


def is_open(cfg: RunConfig) -> bool:
    """True if a setting is ``auto``."""
    return cfg.batch.global_size == "auto" or asks_memory(cfg)


def asks_memory(cfg: RunConfig) -> bool:
    """True if a setting is ``auto`` that depends on the memory of a device."""
    return "auto" in (cfg.zero.stage, cfg.model.recompute, cfg.batch.micro_size)


def resolve(cfg: RunConfig, model: Mapping[str, Any], supervised: float) -> RunConfig:
    """``cfg`` with every ``auto`` that depends on memory replaced.

    Raises ConfigError saying what comes closest if nothing fits.
    """
    if not asks_memory(cfg):
        return cfg
    found = options(cfg, model, supervised)
    chosen = choose(found)
    if chosen is None:
        least = min(found, key=lambda option: option.memory.device)
        raise ConfigError(
            f"cluster.gpu_memory_gib: {cfg.cluster.gpu_memory_gib:g} GiB on {cfg.cluster.nodes} x "
            f"{cfg.cluster.gpus_per_node} processes is too little: the smallest plan ({least.name}) needs "
            f"{least.memory.device / GIB:.1f} GiB of the {cfg.cluster.gpu_memory_gib * (1 - MARGIN):.1f} it may use; "
            "take more processes, zero.offload=optimizer, tuning=lora, or a smaller data.seq_len"
        )
    return with_choice(cfg, chosen.stage, chosen.recompute, chosen.micro)


def keep_frozen(cfg: RunConfig, frozen: RunConfig) -> RunConfig:
    """``cfg`` with what an earlier attempt resolved for its ``auto`` settings."""
    return replace(
        cfg,
        zero=replace(cfg.zero, stage=frozen.zero.stage if cfg.zero.stage == "auto" else cfg.zero.stage),
        model=replace(
            cfg.model, recompute=frozen.model.recompute if cfg.model.recompute == "auto" else cfg.model.recompute
        ),
        batch=replace(
            cfg.batch,
            micro_size=frozen.batch.micro_size if cfg.batch.micro_size == "auto" else cfg.batch.micro_size,
            global_size=frozen.batch.global_size if cfg.batch.global_size == "auto" else cfg.batch.global_size,
        ),
    )


def neighbours(cfg: RunConfig, model: Mapping[str, Any], supervised: float) -> list[Option]:
    """The plan's own option first, then every option that differs from it in one setting, micro-batches by a step."""
    (own,) = options(cfg, model, supervised)
    wide = (
        replace(cfg, zero=replace(cfg.zero, stage="auto")),
        replace(cfg, model=replace(cfg.model, recompute="auto")),
        replace(cfg, batch=replace(cfg.batch, micro_size="auto")),
    )
    others = [option for each in wide for option in options(each, model, supervised) if option.name != own.name]
    near = [each for each in others if abs(each.micro.bit_length() - own.micro.bit_length()) <= 1]
    return [own, *near]
