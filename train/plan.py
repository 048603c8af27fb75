"""Memory and step arithmetic of a run before it starts, in closed formulas; torch-free.

Formulas per rank, N trained parameters, n ranks, bf16 with fp32 master weights (Rajbhandari et al. 2020, ZeRO, section
3, counts the same 16 bytes per parameter): weights 2N (stage 3: /n), gradients 2N (stages 2, 3: /n), optimizer 12N
(stages 1-3: /n), fp32 gradient accumulation another 2N (as the gradients). A frozen base adds its weights only.
Activations and logits are upper estimates for the micro-batch; constants that are estimates say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from conf.errors import ConfigError, MissingInput
from conf.schema import BatchConfig, LoraTuning, ModelConfig, RunConfig
from train.adapters import frozen_size, new_elements, virtual_tokens, whole_elements
from train.parameters import Shape, shape_of

GIB = 2**30
Recompute = Literal["none", "selective", "full"]

# Bytes of saved activations per token, layer and unit of hidden width, in bf16 and eager transformers: upper ends of
# the ranges 53-58 (full), 76-82 (LoRA) and 122 (LoRA with dropout, which keeps its mask and input).
ACTIVATION_BYTES_FULL, ACTIVATION_BYTES_LORA, ACTIVATION_BYTES_LORA_DROPOUT = 58, 82, 122
CHECKPOINT_BYTES = 2
"""Bytes per token, layer and unit of width of a recomputed block: its bf16 input."""
CONTEXT_BYTES = GIB
"""CUDA context, NCCL and cuBLAS workspaces: an estimate, not a measurement."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and on its host for what is offloaded."""

    weights: float
    gradients: float
    optimizer: float
    accumulation: float
    """What fp32 gradient accumulation adds to ``gradients``."""
    activations: float
    logits: float
    buffers: float
    """Communication buckets, gathered parameters (stage 3), context."""
    host: float = 0.0

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        return self.states + self.accumulation + self.activations + self.logits + self.buffers

    def gib(self) -> dict[str, float]:
        """All parts and sums in GiB, rounded to 3 digits."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: round(size / GIB, 3) for name, size in {**parts, "states": self.states, "device": self.device}.items()
        }


@dataclass(frozen=True)
class Plan:
    parameters: int
    trained: int
    world: int
    micro_batches: int
    """Forward passes per rank and optimizer step."""
    tokens_per_step: int
    """Upper bound: rows of the global batch x ``data.seq_len``."""
    checkpoint_bytes: int
    """fp32 weights and both AdamW moments of the trained parameters."""
    gpu_memory_gib: float
    stage: int
    recompute: Recompute
    stages: dict[int, Memory]
    """With the configured recomputation, for every ZeRO stage."""
    recomputations: dict[Recompute, Memory]
    """With the configured stage, for every ``model.recompute``."""

    @property
    def chosen(self) -> Memory:
        return self.stages[self.stage]

    def fits(self, memory: Memory) -> bool:
        return memory.device <= self.gpu_memory_gib * GIB

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; sizes in GiB."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("stages", "recomputations"):
            plain[name] = {str(key): memory.gib() | {"fits": self.fits(memory)} for key, memory in plain[name].items()}
        return plain | {"checkpoint_gib": round(self.checkpoint_bytes / GIB, 3), "fits": self.fits(self.chosen)}


def accumulation_steps(batch: BatchConfig, world: int) -> int:
    """Micro-batches per rank and step: ceil(global_size / (world * micro_size)); the last slots may be empty."""
    return -(-batch.global_size // (world * batch.micro_size))


def states(trained: int, frozen: float, *, stage: int, world: int, dtype: str, offload: str = "none") -> Memory:
    """Weights, gradients and optimizer states of one rank (formulas above).

    fp32 has no second weight copy at stage 0; DeepSpeed clones its partition at stages 1-3, so 12N there too.
    """
    size = 2 if dtype == "bf16" else 4
    weights = size * (trained + frozen) / (world if stage == 3 else 1)
    gradients = size * trained / (world if stage >= 2 else 1)
    accumulation = (4 - size) * trained / (world if stage >= 2 else 1)
    optimizer = (12 if dtype == "bf16" or stage else 8) * trained / (world if stage else 1)
    host = 0.0
    if offload != "none":
        host, optimizer, accumulation = optimizer + accumulation, 0.0, 0.0
    if offload == "all" and stage == 3:
        host, weights = host + weights, 0.0
    return Memory(weights, gradients, optimizer, accumulation, 0.0, 0.0, 0.0, host)


def activation_bytes(shape: Shape, tokens: int, *, per_unit: int, recompute: Recompute, dtype: str) -> float:
    """Saved activations of ``tokens`` tokens: whole blocks, inputs of recomputed ones, one block being redone."""
    whole = {"none": shape.layers, "selective": shape.layers // 2, "full": 0}[recompute]
    redone = shape.layers - whole
    units = per_unit * (whole + (1 if redone else 0)) + CHECKPOINT_BYTES * redone
    return tokens * shape.hidden * units * (1 if dtype == "bf16" else 2)


def logit_bytes(tokens: float, vocab: int, dtype: str) -> float:
    """Cross-entropy over ``tokens`` rows of logits: bf16 logits, fp32 copy, log-softmax, gradient; in fp32 no copy."""
    return (14 if dtype == "bf16" else 12) * tokens * vocab


def _buffers(cfg: RunConfig, shape: Shape, trained: int, stage: int) -> float:
    size = 2 if cfg.model.dtype == "bf16" else 4
    bucket = min(cfg.zero.bucket_elements, trained) * size
    buckets = bucket * (3 if cfg.zero.overlap_comm else 2) if stage else 0
    live = min(cfg.zero.max_live_parameters, shape.total) * size if stage == 3 else 0
    return buckets + live + CONTEXT_BYTES


def _trained(cfg: RunConfig, shape: Shape) -> int:
    return new_elements(cfg.tuning, shape) + whole_elements(cfg.tuning, shape)


def _activation_unit(cfg: RunConfig) -> int:
    if not isinstance(cfg.tuning, LoraTuning):
        return ACTIVATION_BYTES_FULL
    return ACTIVATION_BYTES_LORA_DROPOUT if cfg.tuning.dropout else ACTIVATION_BYTES_LORA


def memory(cfg: RunConfig, shape: Shape, *, stage: int, recompute: Recompute, supervised: float = 1.0) -> Memory:
    """One rank's memory. ``supervised``: share of tokens that are targets; 1 is the upper bound."""
    trained, frozen = _trained(cfg, shape), frozen_size(cfg.tuning, shape)
    dtype, world = cfg.model.dtype, cfg.cluster.nodes * cfg.cluster.gpus_per_node
    tokens = cfg.batch.micro_size * (cfg.data.seq_len + virtual_tokens(cfg.tuning))
    counted = tokens * supervised if cfg.compute.targets_only_head and cfg.data.pack == "exact" else tokens
    return replace(
        states(trained, frozen, stage=stage, world=world, dtype=dtype, offload=cfg.zero.offload),
        activations=activation_bytes(shape, tokens, per_unit=_activation_unit(cfg), recompute=recompute, dtype=dtype),
        logits=logit_bytes(counted, shape.vocab, dtype),
        buffers=_buffers(cfg, shape, trained, stage),
    )


def plan(cfg: RunConfig, model: Mapping[str, Any], *, supervised: float = 1.0) -> Plan:
    """The plan of ``cfg`` for the Hugging Face config ``model`` (see ``read_model_config``)."""
    shape = shape_of(model)
    trained = _trained(cfg, shape)
    world, stage, recompute = cfg.cluster.nodes * cfg.cluster.gpus_per_node, cfg.zero.stage, cfg.model.recompute
    every: tuple[Recompute, ...] = ("none", "selective", "full")
    return Plan(
        parameters=shape.total,
        trained=trained,
        world=world,
        micro_batches=accumulation_steps(cfg.batch, world),
        tokens_per_step=cfg.batch.global_size * cfg.data.seq_len,
        checkpoint_bytes=12 * trained,
        gpu_memory_gib=cfg.cluster.gpu_memory_gib,
        stage=stage,
        recompute=recompute,
        stages={each: memory(cfg, shape, stage=each, recompute=recompute, supervised=supervised) for each in range(4)},
        recomputations={each: memory(cfg, shape, stage=stage, recompute=each, supervised=supervised) for each in every},
    )


def read_model_config(model: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config of ``model`` as a mapping: inline, from a local folder, or from the local hub cache.

    Nothing is downloaded. MissingInput says what was looked for; ConfigError names a file that is no JSON object.
    """
    if model.config is not None:
        trained = {"vocab_size": model.vocab_size} if model.tokenizer == "train" else {}
        return {**model.config, **trained}
    path = _config_file(model.path or "", model.revision)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model.path: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: {path} holds no JSON object")
    return found


def _config_file(name: str, revision: str | None) -> Path:
    local = Path(name) / "config.json"
    if local.is_file():
        return local
    if Path(name).is_dir():
        raise MissingInput(f"model.path={name} has no config.json; a Hugging Face model folder is expected")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        cached = None
    if isinstance(cached, str):
        return Path(cached)
    raise MissingInput(
        f"model.path={name} is neither a local folder nor in the local hub cache, so its size is not known yet; "
        f"fetch it with: hf download {name} config.json"
    )
