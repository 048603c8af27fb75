"""Memory of one rank before a run starts: states by ZeRO stage, buffers, and the moment at which most is alive.

Per rank, N trained parameters, n ranks, bf16 compute with fp32 master weights (Rajbhandari et al. 2020, ZeRO, section
3: 16 bytes per parameter): weights 2N (stage 3: /n), gradients 2N (stages 2, 3: /n), optimizer 12N (stages 1-3: /n).
Gradients are accumulated in fp32, which adds 2N (as the gradients). A frozen base adds its weights only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from conf.errors import ConfigError, InternalError
from conf.schema import BatchConfig, RunConfig
from conf.schema.facts import Trained
from conf.schema.methods import Tuning, virtual_tokens
from conf.whole_numbers import ceil_div
from train.families import Config, Shape, Work
from train.plan.activations import ELEMENT, Moment, Recompute, step_peaks
from train.plan.buffers import Buffers, buffers, largest_gradient
from train.plan.chunks import chunk_size

GIB = 2**30
CONTEXT_BYTES = GIB
"""CUDA context, cuBLAS workspace (32 MiB on Hopper, aten/src/ATen/cuda/CublasHandlePool.cpp) and NCCL's channels: an
estimate, not a measurement."""
FRAGMENTATION = 0.03
"""Share of activations and passing tensors that the caching allocator cannot use: blocks above 1 MiB are rounded to
2 MiB and split (c10/cuda/CUDACachingAllocator.cpp, kRoundLarge); how much that costs is an estimate."""
NF4_SHARE = 4.127 / 16
"""Size of a quantized matrix against 16 bits: 4, and 0.127 for its constants (Dettmers et al. 2023, section 3)."""
REDUCING = ("norm", "deepest", "embedding")
"""Phases of a micro-batch in which gradients may be on their way: before them none is ready."""
SUB_GROUP = 1_000_000_000
"""Elements that stage 3 steps at once (sub_group_size in train/engine/settings.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device at its peak, and on its host for what is offloaded."""

    weights: float
    gradients: float
    accumulation: float
    """What fp32 gradient accumulation adds to ``gradients``."""
    optimizer: float
    """Master weights and both moments."""
    gathered: float
    """Parameters that stage 3 holds whole at once."""
    buckets: float
    """Of the reduction of gradients, with its copies (train/plan/buffers.py)."""
    activations: float
    logits: float
    passing: float
    """Gradients on their way, or at the optimizer step its copy of them."""
    context: float
    fragmentation: float
    host: float
    phase: str
    """Which moment is the peak: loss, head, norm, deepest, embedding, reduce, or step (of the optimizer)."""

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        parts = (getattr(self, each.name) for each in fields(self) if each.name not in ("host", "phase"))
        return float(sum(parts))

    def gib(self) -> dict[str, Any]:
        """All parts and sums in GiB, rounded to 3 digits."""
        parts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "phase"}
        sums = {**parts, "states": self.states, "device": self.device}
        return {name: round(size / GIB, 3) for name, size in sums.items()} | {"phase": self.phase}


@dataclass(frozen=True)
class States:
    """Bytes of one rank that live for the whole step."""

    weights: float
    gradients: float
    accumulation: float
    optimizer: float
    host: float
    step: float
    """What the optimizer step adds for its duration."""

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.accumulation + self.optimizer


def number(setting: int | Literal["auto"]) -> int:
    """A setting that may be ``auto``, after ``resolve`` has replaced it."""
    if isinstance(setting, str):
        raise InternalError("a setting is still auto where its value is needed; train.plan.settle comes first")
    return setting


def readers(world: int, sequence_parallel: int) -> int:
    """Number of groups of ``sequence_parallel`` ranks; a group has its own rows. ConfigError if ranks are left over."""
    if world % sequence_parallel:
        fitting = ", ".join(str(size) for size in range(1, world + 1) if world % size == 0)
        raise ConfigError(
            f"compute.sequence_parallel: {world} rank{'s' if world > 1 else ''} cannot be divided into groups of "
            f"{sequence_parallel}; use one of {fitting}"
        )
    return world // sequence_parallel


def check_heads(heads: int, sequence_parallel: int) -> None:
    """Raise ConfigError unless every rank of a group gets the same number of the model's query heads."""
    if heads % sequence_parallel:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise ConfigError(
            f"compute.sequence_parallel: {sequence_parallel} ranks cannot share the model's {heads} query heads "
            f"evenly; use one of {fitting}"
        )


def slice_tokens(cfg: RunConfig, tokens: int) -> int:
    """The number of tokens that one rank computes of a micro-batch of ``tokens``."""
    return ceil_div(tokens, cfg.compute.sequence_parallel)


def accumulation_steps(batch: BatchConfig, world: int) -> int:
    """Micro-batches per rank and step: ceil(global_size / (world * micro_size)); the last slots may be empty.

    ``world``: ranks with rows of their own (``readers``).
    """
    return ceil_div(number(batch.global_size), world * number(batch.micro_size))


def states(trained: int, frozen: float, *, stage: int, world: int, dtype: str, offload: str = "none") -> States:
    """Weights, gradients and optimizer states of one rank. ``frozen``: bytes of weights that are not trained.

    As DeepSpeed 0.19.8 keeps them (measured over two ranks in tests/train/plan/test_states.py). Stages 1 to 3 hold a
    master copy in fp32 runs too. Stage 1 in bf16 (bf16_optimizer.py) keeps every gradient twice, as computed and in
    fp32. For the step, stage 3 copies its gradients, one sub-group at a time (stage3.py,
    _prepare_fp32_grad_for_sub_group), and so do stages 1 and 2 in fp32 (stage_1_and_2.py, step).
    """
    size, part = ELEMENT[dtype], trained / world
    weights = (size * trained + frozen) / (world if stage == 3 else 1)
    split = world if stage >= 2 else 1
    gradients, accumulation = size * trained / split, (4 - size) * trained / split
    if stage == 1 and dtype == "bf16":
        accumulation = 4.0 * trained
    optimizer = 12.0 * part if stage else 8.0 * trained
    copied = {0: 0.0, 1: 4 * part if dtype == "fp32" else 0.0, 2: 4 * part if dtype == "fp32" else 0.0}
    step = copied.get(stage, 4.0 * min(part, SUB_GROUP))
    if offload == "none":
        return States(weights, gradients, accumulation, optimizer, 0.0, step)
    return _offloaded(weights, trained, part, size, stage, offload)


def _offloaded(weights: float, trained: int, part: float, size: int, stage: int, offload: str) -> States:
    """With the optimizer on the host: its states, fp32 gradients and a second buffer for what goes back and forth.

    Below stage 3 the gradients of the micro-batch stay on the device until the step.
    """
    if stage == 3:
        host = (12 + 4 + 4) * part
        return States(0.0 if offload == "all" else weights, 0.0, 0.0, 0.0, host + (offload == "all") * weights, 0.0)
    return States(weights, float(size * trained), 0.0, 0.0, (12 + 4 + size) * part, 0.0)


def trained_by(tuning: Tuning, shape: Shape) -> Trained:
    """What ``tuning`` trains in a model of ``shape``, with embedding and head if they have new rows: an upper bound."""
    found = tuning.trained(shape)
    if shape.base_vocab is None or found.adapted is None:
        return found
    return replace(found, whole=min(shape.total, found.whole + shape.tables))


def trained_and_frozen(cfg: RunConfig, shape: Shape) -> tuple[int, float]:
    """Parameters that are trained, and those that are not, a quantized one counted by its size against 16 bits."""
    trained = trained_by(cfg.tuning, shape)
    frozen = float(shape.total - trained.whole)
    if trained.matrices_of_blocks == "4 bits":
        frozen -= (1.0 - NF4_SHARE) * shape.layers * shape.block_matrices
    return trained.new + trained.whole, frozen


def work_of(cfg: RunConfig, shape: Shape, supervised: float) -> Work:
    """The micro-batch of ``cfg`` as activations depend on it. ``supervised``: share of tokens that are targets.

    What adapters other than LoRA keep for the backward pass is left out: it is small beside the blocks' own.
    """
    row, flat = cfg.data.seq_len + virtual_tokens(cfg.tuning), cfg.data.pack == "exact"
    rows, trained = number(cfg.batch.micro_size) * row, trained_by(cfg.tuning, shape)
    logits = tokens = slice_tokens(cfg, rows)
    chunk = 0
    if cfg.compute.targets_only_head and flat:
        # Of a sliced row, one slice may hold all targets: the answer to a long document does.
        logits = min(tokens, math.ceil(rows * supervised))
        chunk = 0 if shape.capped or trained.head == "wrapped" else chunk_size(logits, shape.vocab)
    return Work(
        tokens=tokens,
        logits=logits,
        row=row,
        element=ELEMENT[cfg.model.dtype],
        adapted=trained.adapted,
        rank=trained.rank,
        dropout=trained.dropout,
        tables=shape.base_vocab is not None,
        chunk=chunk,
        slices=cfg.compute.sequence_parallel,
    )


def memory(
    cfg: RunConfig, model: Config, shape: Shape, *, stage: int, recompute: Recompute, supervised: float = 1.0
) -> Memory:
    """One rank's memory at its peak. ``supervised`` = 1 is the upper bound.

    With one micro-batch per step, stages 0 and 2 hold no gradient while activations are at their highest.
    """
    check_heads(shape.heads, cfg.compute.sequence_parallel)
    trained, frozen = trained_and_frozen(cfg, shape)
    world, dtype = cfg.cluster.nodes * cfg.cluster.gpus_per_node, cfg.model.dtype
    held = states(trained, ELEMENT[dtype] * frozen, stage=stage, world=world, dtype=dtype, offload=cfg.zero.offload)
    moments = step_peaks(model, shape, work_of(cfg, shape, supervised), recompute)
    own_rows = readers(world, cfg.compute.sequence_parallel)
    micro_batches = accumulation_steps(cfg.batch, own_rows)
    between = stage in (1, 3) or micro_batches > 1
    group = cfg.zero.deepspeed.get("zero_hpz_partition_size", 1)
    # hpZ keeps a second copy of the weights within each group (partition_parameters.py, ds_secondary_tensor).
    second = ELEMENT[dtype] * (trained + frozen) / group if stage == 3 and group > 1 else 0.0
    # An objective that compares with the base before tuning keeps a whole copy of it on every rank.
    compared = float(ELEMENT[dtype] * shape.total) if cfg.objective.FACTS.base == "frozen" else 0.0
    own, gathered = trained_by(cfg.tuning, shape), _gathered(cfg, shape, stage)

    def reducing(phase: str) -> Buffers:
        largest = largest_gradient(own, shape, phase)
        return buffers(cfg, stage=stage, trained=trained, largest=largest, micro_batches=micro_batches)

    def at(phase: str, moment: Moment, *, gradients: bool, during: bool) -> Memory:
        on_the_way = reducing(phase)
        moving = moment.activations + moment.logits + moment.passing
        return Memory(
            weights=held.weights + second + compared,
            gradients=held.gradients if gradients else 0.0,
            accumulation=held.accumulation if gradients else 0.0,
            optimizer=held.optimizer,
            gathered=gathered if during else 0.0,
            buckets=on_the_way.held * (stage == 3 or phase in REDUCING) + on_the_way.passing * (phase in REDUCING),
            activations=moment.activations,
            logits=moment.logits,
            passing=moment.passing,
            context=float(CONTEXT_BYTES),
            fragmentation=FRAGMENTATION * moving,
            host=held.host,
            phase=phase,
        )

    during = [
        at(phase, each, gradients=between or phase == "embedding", during=True) for phase, each in moments.items()
    ]
    reduced = at("reduce", Moment(0.0, 0.0, reducing("reduce").after), gradients=True, during=False)
    step = at("step", Moment(0.0, 0.0, held.step), gradients=True, during=False)
    return max([*during, reduced, step], key=lambda each: each.device)


def _gathered(cfg: RunConfig, shape: Shape, stage: int) -> float:
    """Stage 3 keeps parameters whole up to ``max_live_parameters`` (partitioned_param_coordinator.py): a bound."""
    whole = min(cfg.zero.max_live_parameters, shape.total)
    return float(whole * ELEMENT[cfg.model.dtype]) if stage == 3 else 0.0
