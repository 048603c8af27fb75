"""Every setting of a run: its type, its unit, what is allowed, and why its default is what it is.

One dataclass per section, one yaml group per section. All are frozen, strict (no silent conversion) and refuse keys
they do not know. ``validate`` judges a plain dict once and reports every problem at once; rules that need two settings
live in ``conf/checks.py``, tuning methods in ``conf/methods.py``. Nothing below reads a file or imports anything heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from conf.checks import cross_checks
from conf.corpus import DataConfig, DecontaminateConfig, RateConfig, SourceConfig, StopConfig
from conf.errors import ConfigError
from conf.fields import STRICT, Count, Fraction, Name, Positive, PositiveFloat
from conf.methods import (
    BottleneckTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    Tuning,
)
from conf.problems import field_problems, without

__all__ = [
    "BottleneckTuning", "DataConfig", "DecontaminateConfig", "FullTuning", "Ia3Tuning", "LoraTuning", "PrefixTuning",
    "PromptTuning", "RateConfig", "RunConfig", "SourceConfig", "StopConfig", "to_dict", "validate",
]  # fmt: skip


def _no_boolean(value: Any) -> Any:
    """Python's True equals 1, so a literal of integers would take what yaml read as a boolean."""
    if isinstance(value, bool):
        raise ValueError("a boolean")
    return value


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: str | None = None
    """Local folder or hub id of a Hugging Face causal language model. Exactly one of ``path`` and ``config``."""
    config: dict[str, Any] | None = None
    """A Hugging Face config as a mapping (with ``model_type``), for a model that starts from random weights."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` needs ``config``; the weights follow from ``seed`` alone, whatever the number of ranks."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute dtype. bf16 keeps fp32 master weights and fp32 gradient accumulation; fp32 is exact and slow."""
    recompute: Literal["none", "selective", "full", "auto"] = "none"
    """Activation checkpointing: none, every second block (selective), every block (full); auto: the least that fits
    ``cluster.gpu_memory_gib``."""
    tokenizer: str | None = None
    """Folder or hub id; ``train`` learns a byte-level BPE from the corpus itself. Default: ``model.path``."""
    vocab_size: Positive = 2048
    """Size of a trained tokenizer, in tokens; only read with ``tokenizer: train``."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of ``path``; None is the hub's default branch."""


@dataclass(frozen=True, config=STRICT)
class AttentionConfig:
    backend: Literal["auto", "packed", "flash2", "flash3", "flash4", "sdpa"] = "auto"
    """auto takes the best that passes the start-up self-test on this machine and says which."""


@dataclass(frozen=True, config=STRICT)
class ZeroConfig:
    stage: Annotated[Literal[0, 1, 2, 3, "auto"], BeforeValidator(_no_boolean)] = 2
    """What is sharded over the ranks: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters; auto: the fastest
    that fits ``cluster.gpu_memory_gib``."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """To host memory: optimizer states, or (stage 3) optimizer states and parameters."""
    bucket_elements: Positive = 50_000_000
    """Elements per reduce and all-gather bucket, at most: no more than are trained."""
    overlap_comm: bool = True
    persistence_threshold: Count = 100_000
    """Stage 3: parameters with fewer elements stay whole on every rank."""
    prefetch_elements: Count = 50_000_000
    """Stage 3: elements gathered ahead of their turn, at most: no more than one block of the model has."""
    max_live_parameters: Positive = 1_000_000_000
    """Stage 3: elements that are whole at once, at most."""
    deepspeed: dict[str, int | bool] = Field(default_factory=dict)
    """Stage 3: keys of DeepSpeed's own zero_optimization section, passed on as they are (``conf.checks.PASSED_ON``)."""


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled (Loshchilov and Hutter 2019); not applied to vectors (norms, biases)."""
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95]
    )
    eps: PositiveFloat = 1e-8
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    max_steps: Count = 0
    """Optimizer steps; 0: as many as ``data.stop`` gives."""
    warmup_steps: Count | None = None
    warmup_fraction: Fraction | None = None
    """Share of all steps. At most one of the two warmups is set; neither means none."""
    min_ratio: Fraction = 0.0
    """Last learning rate as a share of the peak."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """wsd only: share of the steps, at the end, that decay linearly."""


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    global_size: Positive = 128
    """Packed rows per optimizer step, over all ranks. Accumulation follows; the last slots may be empty rows."""
    micro_size: Positive | Literal["auto"] = 1
    """Rows per rank and forward pass; auto: the most that fit and still gain."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    every_steps: Count = 0
    """0: only at the end."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Verified checkpoints kept; the last two are never touched."""
    background: bool = False


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    every_steps: Count = 0
    """0: never during training."""
    at_start: bool = False
    """Also before the first step, so that a report can say before and after."""
    at_end: bool = True
    max_rows: Count = 512
    """Held-out rows per source for the loss; 0: all."""
    generate_rows: Count = 8
    """Held-out rows per source that are answered and scored (exact match, ROUGE-L); 0: none."""
    max_new_tokens: Positive = 128
    batch_size: Positive = 16
    """Rows that are answered at once."""
    sources: dict[Name, str] = Field(default_factory=dict)
    """Further prepared corpora by name, each a folder or a URL; their validation splits are evaluated too."""


@dataclass(frozen=True, config=STRICT)
class TrackerConfig:
    wandb: Literal["online", "offline", "disabled"] = "online"
    """online without an API key on this machine becomes offline, and says so."""
    project: str = "corral"
    group: str | None = None
    log_every: Positive = 1
    """Steps between two lines of metrics."""


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """What is minimised besides the likelihood; ``train/loss`` is the mean negative log-likelihood all the same."""

    z_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of log(Z)^2 per target, which keeps the softmax's denominator near 1 (PaLM, section 5: 1e-4). 0: none."""
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the vocabulary (Szegedy et al. 2016, section 7). 0: none."""


@dataclass(frozen=True, config=STRICT)
class ComputeConfig:
    targets_only_head: bool = True
    """Logits only where there is a target: the same loss and gradients, less memory and time."""
    kernels: Literal["none", "liger", "compile"] = "none"
    """Fused kernels for norms, rotary positions and activations on GPUs: Liger's package, or torch.compile's (the first
    step waits a minute for it; not with zero=3)."""
    prune_last_layer: bool = False
    deterministic: bool = False
    """Bitwise repeatable kernels; slower."""
    threads: Count = 0
    """CPU threads per process; 0: cores / processes on the machine."""
    sequence_parallel: Positive = 1
    """Consecutive ranks that share every row, each on its slice of the tokens and, inside attention, its share of the
    heads: for documents longer than one GPU holds. Divides the ranks and the model's query heads. 1: none."""


@dataclass(frozen=True, config=STRICT)
class ClusterConfig:
    kind: Literal["local", "slurm"] = "local"
    nodes: Positive = 1
    gpus_per_node: Positive = 1
    """Processes per node; on a machine without GPUs, CPU processes."""
    gpu_memory_gib: PositiveFloat = 80.0
    """Memory of one GPU, for ``plan`` and for settings that are ``auto``."""
    gpu: Literal["h100", "h200", "a100"] = "h100"
    """For ``plan``'s speed."""
    node_gbit_per_s: PositiveFloat = 3200.0
    """Network of one node, all its cards together (8 x 400), for ``plan``."""
    storage_gib_per_s: PositiveFloat = 2.0
    """What all ranks together write to the run's file system, for ``plan``'s checkpoint stall: measure yours."""
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    """SLURM time limit, e.g. "12:00:00"."""
    max_restarts: Count = 3
    """Restarts without progress before the launcher gives up."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    name: Name
    model: ModelConfig
    data: DataConfig
    tuning: Annotated[Tuning, Field(discriminator="method")]
    attention: AttentionConfig
    zero: ZeroConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    tracker: TrackerConfig
    compute: ComputeConfig
    cluster: ClusterConfig
    loss: LossConfig = Field(default_factory=LossConfig)
    seed: Count = 0
    run_dir: str = ""
    """Folder of everything the run writes. The root yaml makes it ``outputs/${name}``."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue from run_dir's last good checkpoint; never: refuse a used run_dir; must: refuse a fresh one."""


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """Judge a plain, resolved mapping. Raises ConfigError with every problem at once, each line led by its path."""
    plain = json.loads(_as_json(raw))
    try:
        cfg = _adapter().validate_json(_as_json(plain))
    except ValidationError as error:
        lines = field_problems([dict(each) for each in error.errors()], plain, RunConfig)
        raise ConfigError([*lines.values(), *_checks_beside(plain, set(lines))]) from None
    findings = cross_checks(cfg)
    if findings:
        raise ConfigError([finding.line for finding in findings])
    return cfg


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars that JSON can hold; ``validate`` gives the same config back."""
    return asdict(cfg)


def _as_json(raw: Mapping[str, Any]) -> str:
    # Strict dataclasses refuse nested dicts in validate_python; through JSON they are JSON's own types.
    try:
        return json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config holds a value that JSON cannot: {error}; write text, numbers, lists") from None


def _checks_beside(plain: dict[str, Any], broken: set[tuple[str | int, ...]]) -> list[str]:
    """Cross checks of a config with broken fields: those fields at their defaults, and nothing said about them."""
    try:
        cfg = _adapter().validate_json(_as_json(without(plain, broken)))
    except ValidationError:
        return []
    return [finding.line for finding in cross_checks(cfg) if not finding.touches(broken)]
