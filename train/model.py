"""The model of a run: base weights loaded, attention chosen, recomputation set, tuning applied.

Nothing here knows DeepSpeed: under ZeRO-3 the caller's ``init_context`` makes transformers partition weights as it
reads them. On every rank and world size the same weights come out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.errors import BadData, ConfigError
from conf.schema import RunConfig
from train import tuning
from train.attention import Attention, choose
from train.base import base_folder, base_hash, check_complete, once
from train.distributed import Ranks
from train.kernels import use_kernels
from train.models import Family, family
from train.plan import check_heads, number
from train.quantize import quantized
from train.recompute import set_recompute

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Built:
    model: nn.Module
    """In train mode, on the CPU, in the compute dtype; only what is tuned requires gradients."""
    family: Family
    attention: Attention
    base_hash: str
    """Which weights the run started from (train.base.base_hash)."""
    folder: Path
    """The local Hugging Face folder they were read from."""
    notes: tuple[str, ...] = ()
    """What was set differently from the base's own config, one sentence each, for the log."""


def build(
    cfg: RunConfig,
    ranks: Ranks,
    *,
    vocab_size: int,
    pad_id: int,
    eos_id: int,
    init_context: AbstractContextManager[Any],
) -> Built:
    """Build the model of ``cfg``. Collective.

    ``vocab_size`` (largest id + 1), ``pad_id``, ``eos_id``: the corpus's tokenizer's. ``init_context`` is entered
    once, around reading the weights and adding to them. Raises ConfigError, MissingInput, Unavailable, BadData or
    CannotCreate.
    """
    run_dir, dtype = Path(cfg.run_dir), DTYPES[cfg.model.dtype]
    folder = base_folder(cfg.model, ranks, run_dir=run_dir, seed=cfg.seed, vocab_size=vocab_size)
    config = _read_config(folder)
    kind = family(config.model_type)
    backend = "sdpa" if tuning.virtual_tokens(cfg.tuning) else cfg.attention.backend  # the one with padded rows
    attention = choose(
        backend,
        family=kind,
        pack=cfg.data.pack,
        dtype=dtype,
        device=ranks.device,
        share=cfg.data.share_prefix and cfg.data.pack == "exact",
        slices=cfg.compute.sequence_parallel,
    )
    quantization = quantized(cfg.tuning, dtype=dtype, device=ranks.device)
    _check_fits(config, kind, cfg, folder, vocab_size)
    check_heads(config.num_attention_heads, cfg.compute.sequence_parallel)
    notes = _for_training(config, kind, cfg)
    with init_context:
        model = _load(folder, config, attention.implementation, dtype, quantization)
        fused = use_kernels(model, cfg.compute.kernels, kind, ranks.device)
        # In here too, because some methods start from weights, which ZeRO-3 has partitioned: PEFT gathers them.
        tuned = tuning.apply(model, cfg.tuning, kind, seed=cfg.seed).train()
    notes += [fused] if fused else []
    _for_generation(model, pad_id=pad_id, eos_id=eos_id)
    # After PEFT: it would make the embedding's output require gradients, which this form of recomputation needs not.
    recomputed = set_recompute(tuned, cfg.model.recompute, block_class=kind.block_class)
    if recomputed:
        notes.append(f"{recomputed} blocks are computed again in the backward pass (model.recompute)")
    return Built(tuned, kind, attention, once(ranks, lambda: base_hash(folder)), folder, tuple(notes))


def _read_config(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise BadData(f"model.path: {folder}/config.json cannot be used: {_one_line(error)}") from error


def _check_fits(config: Any, kind: Family, cfg: RunConfig, folder: Path, vocab_size: int) -> None:
    """Raise ConfigError for a tokenizer or a sequence length that the model has no embeddings or no sight for."""
    problems = []
    if config.vocab_size < vocab_size:
        problems.append(
            f"model.tokenizer: the corpus has token ids up to {vocab_size - 1}, the model in {folder} has embeddings "
            f"for {config.vocab_size} tokens; prepare the corpus with the model's own tokenizer"
        )
    limit = getattr(config, kind.position_limit) if kind.position_limit else None
    virtual = tuning.virtual_tokens(cfg.tuning)
    if limit is not None and cfg.data.seq_len + virtual > limit:
        beside = f" beside tuning.virtual_tokens={virtual}" if virtual else ""
        problems.append(
            f"data.seq_len: {cfg.data.seq_len}{beside} is more than the {limit} positions the model can represent "
            f"({kind.position_limit}); data.seq_len={limit - virtual} works"
        )
    window = getattr(config, "sliding_window", None)
    if cfg.tuning.method == "prefix" and window and cfg.data.seq_len + virtual > window:
        problems.append(
            f"tuning.method: prefix stands before the sample, and this model sees {window} tokens back, less than "
            f"data.seq_len={cfg.data.seq_len} beside tuning.virtual_tokens={virtual}; data.seq_len={window - virtual} "
            "or another method works"
        )
    stretched = _stretched_from(config)
    shared = cfg.data.pack == "exact" or number(cfg.batch.micro_size) > 1
    if stretched and shared and cfg.data.seq_len > stretched:
        problems.append(
            f"data.seq_len: {cfg.data.seq_len} is more than the {stretched} positions up to which this model's rotary "
            "frequencies are fixed; beyond, they depend on the longest sample of a micro-batch, so that samples would "
            f"change one another; data.seq_len={stretched} or data.pack=none with batch.micro_size=1 works"
        )
    if problems:
        raise ConfigError(problems)


def _stretched_from(config: Any) -> int:
    """Tokens from which a model's rotary frequencies depend on the length of the input (0: they never do).

    transformers' ``dynamic_rope_update``: dynamic NTK grows beyond ``max_position_embeddings``, LongRoPE (Ding et al.
    2024) changes its factors beyond ``original_max_position_embeddings``.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings")
        return int(original or getattr(config, "original_max_position_embeddings", 0) or config.max_position_embeddings)
    return int(config.max_position_embeddings) if kind == "dynamic" else 0


def _for_training(config: Any, kind: Family, cfg: RunConfig) -> list[str]:
    """Change ``config`` to what training needs and say what was changed."""
    notes = []
    config.use_cache = False  # a cache makes transformers forget that the samples of a row are separate
    config.pad_token_id = None  # else the embedding of that token, often the end of sequence, gets no gradient
    for key in kind.dropouts:
        if getattr(config, key, 0.0):
            notes.append(
                f"the base's {key}={getattr(config, key)} is 0 here: the loss is a function of the batch alone"
            )
            setattr(config, key, 0.0)
    trained_for = getattr(config, "max_position_embeddings", None)
    if not kind.position_limit and trained_for and cfg.data.seq_len > trained_for:
        notes.append(f"data.seq_len={cfg.data.seq_len} is more than the {trained_for} positions of the base's training")
    return notes


def _load(folder: Path, config: Any, implementation: str, dtype: torch.dtype, quantization: Any) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per rank over tensors, in the middle of the run's own lines
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=implementation,
            local_files_only=True,
            output_loading_info=True,
            **({} if quantization is None else {"quantization_config": quantization}),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadData(f"model.path: the weights in {folder} cannot be read: {_one_line(error)}") from error
    check_complete(folder, list(info["missing_keys"]))
    loaded: nn.Module = model
    return loaded


def _for_generation(model: Any, *, pad_id: int, eos_id: int) -> None:
    """Greedy decoding that ends where the tuned model ends; sampling settings of the base are not inherited."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=eos_id, pad_token_id=pad_id)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
