"""The whole answer of ``plan``: memory now and beside it, steps, time, communication, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from conf.schema import RunConfig
from train.families import Shape, shape_of
from train.plan.activations import ELEMENT, Recompute
from train.plan.choice import SHARE, Option, neighbours
from train.plan.communication import (
    Traffic,
    compute_seconds,
    exchanged,
    exposed,
    gathered_bytes,
    hiding_tokens,
    kept_whole,
    slower_links,
    traffic,
    traffic_in_order,
)
from train.plan.generation import Generation, generation
from train.plan.memory import (
    GIB,
    Memory,
    accumulation_steps,
    memory,
    number,
    readers,
    slice_tokens,
    trained_and_frozen,
)
from train.plan.speed import Job, Speed, checkpoint_interval, goodput, speed, stall_seconds


@dataclass(frozen=True)
class Corpus:
    """What a prepared corpus says of the batches to come."""

    rows: int
    """Samples of all training splits."""
    tokens: int
    supervised: float
    """Share of the tokens that are targets."""


UNLIKE = "{} is in none of the fitted rows, so no speed is given"
UNKNOWN = Corpus(0, 0, 1.0)
"""Without a corpus every token may be a target: an upper bound."""


@dataclass(frozen=True)
class Plan:
    parameters: int
    trained: int
    world: int
    micro_batches: int
    """Forward passes per rank and optimizer step."""
    tokens_per_step: int
    """Upper bound: rows of the global batch x ``data.seq_len``."""
    samples_per_step: float | None
    steps: int | None
    """Optimizer steps of the run; None without a corpus and ``schedule.max_steps``."""
    checkpoint_bytes: int
    """fp32 weights and both AdamW moments of the trained parameters."""
    stall_s: float
    """Writing one, at ``cluster.storage_gib_per_s``."""
    interval_s: float
    """Between checkpoints, so that least is lost (Young 1974)."""
    goodput: float
    """Share of the time that makes progress, with that interval and failures as often as published."""
    speed: Speed | str
    """Or why there is no figure."""
    traffic: Traffic
    hiding_tokens: float
    """Tokens per GPU and micro-batch above which stage 3 costs nothing (train/plan/communication.py)."""
    answers: Generation | None
    """What the answers of one evaluation cost under stage 3."""
    gpu_memory_gib: float
    stage: int
    recompute: Recompute
    micro_size: int
    supervised: float
    stages: dict[int, Memory]
    """With the configured recomputation, for every ZeRO stage."""
    recomputations: dict[Recompute, Memory]
    """With the configured stage, for every ``model.recompute``."""
    options: list[Option]
    """The plan's own, then its neighbours."""

    @property
    def chosen(self) -> Memory:
        return self.stages[self.stage]

    @property
    def hours(self) -> tuple[float, float] | None:
        """Wall time of the run at the fast and the slow end of the bracket, without evaluation and failures."""
        if self.steps is None or isinstance(self.speed, str):
            return None
        per_gpu = self.steps * self.tokens_per_step / self.world
        return per_gpu / self.speed.high / 3600, per_gpu / self.speed.low / 3600

    def fits(self, memory: Memory) -> bool:
        return memory.device <= self.gpu_memory_gib * GIB

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; sizes in GiB."""
        named = ("stages", "recomputations", "options", "speed", "traffic", "answers")
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in named}
        for name, table in (("stages", self.stages), ("recomputations", self.recomputations)):
            plain[name] = {str(key): each.gib() | {"fits": self.fits(each)} for key, each in table.items()}
        plain["options"] = {
            each.name: {"device": each.memory.gib()["device"], "fits": each.fits, "why": self.why(each)}
            for each in self.options
        }
        plain["speed"] = self.speed if isinstance(self.speed, str) else dict(vars(self.speed))
        plain["traffic"] = self.traffic.gib()
        plain["answers"] = vars(self.answers) if self.answers else None
        checkpoint = round(self.checkpoint_bytes / GIB, 3)
        return plain | {"checkpoint_gib": checkpoint, "fits": self.fits(self.chosen), "hours": self.hours}

    def why(self, option: Option) -> str:
        own = self.options[0]
        return "this plan" if option is own else option.against(own, self.gpu_memory_gib)


def plan(cfg: RunConfig, model: Mapping[str, Any], corpus: Corpus = UNKNOWN) -> Plan:
    """The plan of ``cfg``, no setting of which may be ``auto``, for the Hugging Face config ``model``."""
    shape, cluster = shape_of(model), cfg.cluster
    trained, _ = trained_and_frozen(cfg, shape)
    world, stage = cluster.nodes * cluster.gpus_per_node, number(cfg.zero.stage)
    recompute: Recompute = policy(cfg.model.recompute)
    slices, share = cfg.compute.sequence_parallel, corpus.supervised
    micro_batches = accumulation_steps(cfg.batch, readers(world, slices))
    stall = stall_seconds(12 * trained, cluster.storage_gib_per_s)
    interval = checkpoint_interval(stall, world)
    every: tuple[Recompute, ...] = ("none", "selective", "full")
    unlike = "compute.sequence_parallel" if slices > 1 else "compute.reproducible" if cfg.compute.reproducible else ""
    return Plan(
        parameters=shape.total,
        trained=trained,
        world=world,
        micro_batches=micro_batches,
        tokens_per_step=number(cfg.batch.global_size) * cfg.data.seq_len,
        samples_per_step=samples_per_step(cfg, corpus),
        steps=step_count(cfg, corpus),
        checkpoint_bytes=12 * trained,
        stall_s=stall,
        interval_s=interval,
        goodput=goodput(stall, interval, world),
        speed=UNLIKE.format(unlike) if unlike else speed(job_of(cfg, shape, share)),
        traffic=_traffic(cfg, shape, world=world, micro_batches=micro_batches),
        hiding_tokens=hiding_tokens(cluster.node_gbit_per_s, cfg.zero.reduce_dtype),
        answers=generation(cfg, model, nodes=cluster.nodes, per_node=cluster.gpus_per_node),
        gpu_memory_gib=cluster.gpu_memory_gib,
        stage=stage,
        recompute=recompute,
        micro_size=number(cfg.batch.micro_size),
        supervised=share,
        stages={
            each: memory(cfg, model, shape, stage=each, recompute=recompute, supervised=share) for each in range(4)
        },
        recomputations={
            each: memory(cfg, model, shape, stage=stage, recompute=each, supervised=share) for each in every
        },
        options=neighbours(cfg, model, share),
    )


def _traffic(cfg: RunConfig, shape: Shape, *, world: int, micro_batches: int) -> Traffic:
    trained, frozen = trained_and_frozen(cfg, shape)
    element = ELEMENT[cfg.model.dtype]
    kept = kept_whole(shape.total, shape.vocab * shape.hidden, cfg.zero.max_live_parameters)
    inside = exchanged(
        shape,
        tokens=slice_tokens(cfg, number(cfg.batch.micro_size) * cfg.data.seq_len),
        slices=cfg.compute.sequence_parallel,
        element=element,
        recomputed=SHARE[policy(cfg.model.recompute)],
    )
    common: dict[str, Any] = {
        "trained": trained,
        "gathered": gathered_bytes(element * (trained + frozen), kept),
        "stage": number(cfg.zero.stage),
        "dtype": cfg.model.dtype,
        "micro_batches": micro_batches,
        "world": world,
    }
    exact = cfg.compute.reproducible
    found = traffic_in_order(**common) if exact else traffic(**common, reduce_dtype=cfg.zero.reduce_dtype)
    return replace(found, all_to_all=found.all_to_all + micro_batches * inside)


def policy(setting: str) -> Recompute:
    """A resolved ``model.recompute``."""
    match setting:
        case "none" | "selective" | "full":
            return setting
        case _:
            raise ValueError(f"model.recompute={setting} is not resolved")


def samples_per_step(cfg: RunConfig, corpus: Corpus) -> float | None:
    """Mean samples of one global batch; packing fills rows to within a percent."""
    if not corpus.rows:
        return None
    per_row = cfg.data.seq_len / (corpus.tokens / corpus.rows) if cfg.data.pack == "exact" else 1.0
    return number(cfg.batch.global_size) * max(1.0, per_row)


def step_count(cfg: RunConfig, corpus: Corpus) -> int | None:
    """Optimizer steps: ``schedule.max_steps``, or fewer if the data ends before."""
    most, stop, samples = cfg.schedule.max_steps or None, cfg.data.stop, samples_per_step(cfg, corpus)
    if samples is None:
        return most
    drawn = stop.examples or (corpus.rows * stop.epochs if stop.epochs else None)
    if stop.tokens:
        drawn = stop.tokens / (corpus.tokens / corpus.rows)
    if drawn is None:
        drawn = corpus.rows
    found = math.ceil(drawn / samples)
    return min(found, most) if most else found


def job_of(cfg: RunConfig, shape: Shape, supervised: float) -> Job:
    """The step of ``cfg`` as the cost model sees it."""
    world, micro = cfg.cluster.nodes * cfg.cluster.gpus_per_node, number(cfg.batch.micro_size)
    tokens, trained = micro * cfg.data.seq_len, trained_and_frozen(cfg, shape)[0]
    total, stage = max(trained, shape.total), number(cfg.zero.stage)
    outside = (stage == 2) * exposed(cfg, trained=trained, total=total) + slower_links(
        cfg, trained=trained, total=total
    )
    flat = cfg.compute.targets_only_head and cfg.data.pack == "exact"
    return Job(
        gpu=cfg.cluster.gpu,
        gpus=world,
        parameters=shape.total,
        matrices=shape.matrices,
        hidden=shape.hidden,
        layers=shape.layers,
        vocab=shape.vocab,
        seq_len=cfg.data.seq_len,
        micro_tokens=tokens,
        step_tokens=tokens * accumulation_steps(cfg.batch, world),
        recomputed=SHARE[policy(cfg.model.recompute)],
        stage=stage,
        method="full" if cfg.tuning.trained(shape).adapted is None else "adapter",
        logits=supervised if flat else 1.0,
        reduced=ELEMENT[cfg.zero.reduce_dtype],
        exposed=outside * compute_seconds(total, cut=trained < total),
    )
