"""Builds the model of a run: loads the base, chooses attention, applies tuning and sets recomputation.

This module does not use DeepSpeed: under ZeRO-3 the caller's ``init_context`` makes transformers partition weights as
it reads them. The weights are the same on every rank and for every world size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.errors import ConfigError
from conf.foreign.code import code_of
from conf.schema import ModelConfig, RunConfig
from conf.whole_numbers import ceil_div
from data_prep.tokenizer.growth import GROWN, Growth
from data_prep.tokenizer.tokenizer import Tokenizer
from train import tuning
from train.attention import Asked, Attention, choose
from train.families import Family, family
from train.loading.pretrained import read_config, read_model
from train.model.kernels import use_kernels
from train.model.quantize import quantized
from train.model.recompute import set_recompute
from train.model.weights import base_config, base_folder, base_hash, loaded_files
from train.plan import WORTH_SAYING_SECONDS, check_heads, generation, number, refuse_slow_answers
from train.ranks.group import Ranks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TokenIds:
    """The sizes and ids that a model needs from the corpus's tokenizer."""

    vocab_size: int
    """Largest token id plus one."""
    pad_id: int
    eos_id: int
    new: tuple[int, ...] = ()
    """Ids of tokens that model.new_tokens has added. Those beyond the base's rows are new anyway."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer; none: EOS alone."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, new: Iterable[int] = ()) -> TokenIds:
        return cls(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id, tuple(new), tokenizer.stop_ids)


@dataclass(frozen=True)
class Built:
    model: nn.Module
    """In train mode, on the CPU, in the compute dtype; only tuned parameters require gradients."""
    family: Family
    attention: Attention
    base_hash: str
    """Identifies the base's weights (train.model.weights.base_hash)."""
    base_config: dict[str, Any]
    """What its config.json says (train.model.weights.base_config)."""
    base_files: list[str]
    """The files that its weights were read from (train.model.weights.loaded_files)."""
    folder: Path
    """The local Hugging Face folder of the base."""
    code: tuple[str, ...] = ()
    """What of ``folder`` ran as code, because model.trust_remote_code says so."""
    notes: tuple[str, ...] = ()
    """Differences from the base's config, one sentence each, for the log."""


def build(
    cfg: RunConfig,
    ranks: Ranks,
    ids: TokenIds,
    init_context: AbstractContextManager[Any] | None = None,
) -> Built:
    """Build the model of ``cfg`` for the corpus whose tokenizer has ``ids``. Collective.

    The function enters ``init_context`` once, to read the weights and to apply tuning. Raises ConfigError,
    MissingInput, Unavailable, BadData or CannotCreate.
    """
    run_dir, dtype = Path(cfg.run_dir), DTYPES[cfg.model.dtype]
    folder = base_folder(cfg.model, ranks, run_dir=run_dir, seed=cfg.seed, vocab_size=ids.vocab_size)
    files = loaded_files(folder)  # before any is read: an index may name those of others
    code = ranks.together(lambda: code_of(folder))
    config = _read_config(folder, cfg.model, ranks)
    kind = family(config.model_type)
    share = cfg.data.share_prefix and cfg.data.pack == "exact"
    attention = choose(
        cfg.attention.backend,
        family=kind,
        pack=cfg.data.pack,
        dtype=dtype,
        device=ranks.device,
        asked=Asked(rows=cfg.tuning.FACTS.rows, share=share, slices=cfg.compute.sequence_parallel),
    )
    quantization = quantized(cfg.tuning, dtype=dtype, device=ranks.device)
    _check_fits(config, kind, cfg)
    check_heads(config.num_attention_heads, cfg.compute.sequence_parallel)
    notes = [*_unrun_code(folder, code, cfg.model), *_for_training(config, kind, cfg), *_answers(config, cfg, ranks)]
    with init_context or nullcontext():
        given = {} if quantization is None else {"quantization_config": quantization}
        model = read_model(
            folder,
            config,
            key="model.path",
            trust_remote_code=cfg.model.trust_remote_code,
            dtype=dtype,
            attn_implementation=attention.implementation,
            **given,
        )
        grown = _grow(model, ids)
        fused = use_kernels(model, cfg.compute.kernels, kind, ranks.device)
        # Inside the context, because some methods read weights that ZeRO-3 has partitioned: PEFT gathers them.
        tuned = tuning.apply(model, cfg.tuning, kind, seed=cfg.seed).train()
    if grown:
        notes.append(grown.sentence())
        if not tuning.train_tables(tuned, cfg.tuning):
            notes.append("tuning.freeze: embedding or head is frozen, so its new rows stay the mean of the others")
    notes += [fused] if fused else []
    _for_generation(model, pad_id=ids.pad_id, stop_ids=ids.stop_ids or (ids.eos_id,))
    # After PEFT, which would otherwise make the embedding's output require gradients; this recomputation needs none.
    recomputed = set_recompute(tuned, cfg.model.recompute, block_class=kind.block_class)
    if recomputed:
        notes.append(f"model.recompute: the backward pass computes {recomputed} blocks again")
    hashed, said = ranks.once(lambda: (base_hash(folder), base_config(folder)))
    ran = tuple(code) if cfg.model.trust_remote_code else ()
    return Built(tuned, kind, attention, hashed, said, files, folder, ran, tuple(notes))


def _read_config(folder: Path, model: ModelConfig, ranks: Ranks) -> Any:
    """Code of the folder is copied to a place that the ranks of a node share: the first of them goes first."""
    config = None
    for first in (True, False):
        if (ranks.local_rank == 0) is first:
            read = partial(read_config, folder, key="model.path", trust_remote_code=model.trust_remote_code)
            config = ranks.together(read)
        else:
            ranks.together(lambda: None)
    return config


def _unrun_code(folder: Path, code: Sequence[str], model: ModelConfig) -> Iterator[str]:
    if code and not model.trust_remote_code:
        named = ", ".join(code)
        yield f"model.path: {folder} brings code of its own ({named}), which does not run; transformers' own does"


def _answers(config: Any, cfg: RunConfig, ranks: Ranks) -> Iterator[str]:
    """What the answers of an evaluation cost on these ranks, if that is worth a line. ConfigError if it is too much."""
    per_node = min(ranks.world, ranks.local_world)
    found = generation(cfg, config.to_dict(), nodes=ceil_div(ranks.world, per_node), per_node=per_node)
    refuse_slow_answers(cfg, found)
    if found is not None and found.seconds >= WORTH_SAYING_SECONDS:
        yield f"evaluation.generate_rows: {found.sentence}"


def _grow(model: Any, ids: TokenIds) -> Growth | None:
    """Rows for the tokens that the base does not know, the same on every rank. Collective under ZeRO-3."""
    base = int(model.config.vocab_size)
    new = sorted({*ids.new, *range(base, ids.vocab_size)})
    if not new:
        return None
    grown = Growth(base, ids.vocab_size, len(new))
    tuning.give_rows(model, grown.rows, new)
    setattr(model.config, GROWN, base)  # the plan counts by it; an export does without
    return grown


def _check_fits(config: Any, kind: Family, cfg: RunConfig) -> None:
    """Raise ConfigError if the model cannot see data.seq_len tokens."""
    problems = []
    limit = getattr(config, kind.position_limit) if kind.position_limit else None
    virtual = tuning.virtual_tokens(cfg.tuning)
    if limit is not None and cfg.data.seq_len + virtual > limit:
        beside = f" plus tuning.virtual_tokens={virtual}" if virtual else ""
        problems.append(
            f"data.seq_len: {cfg.data.seq_len}{beside} is more than the {limit} positions of the model "
            f"({kind.position_limit}); set data.seq_len={limit - virtual} or less"
        )
    window = getattr(config, "sliding_window", None)
    if cfg.tuning.FACTS.window != "any" and window and cfg.data.seq_len + virtual > window:
        problems.append(
            f"tuning.method: {cfg.tuning.method} stands before the sample, and this model sees {window} tokens back, "
            f"less than data.seq_len={cfg.data.seq_len} beside tuning.virtual_tokens={virtual}; "
            f"data.seq_len={window - virtual} or another method works"
        )
    stretched = _stretched_from(config)
    shared = cfg.data.pack == "exact" or number(cfg.batch.micro_size) > 1
    if stretched and shared and cfg.data.seq_len > stretched:
        problems.append(
            f"data.seq_len: {cfg.data.seq_len} is more than the {stretched} positions with fixed rotary frequencies in "
            "this model; beyond them the longest sample of a micro-batch would change the frequencies of all its "
            f"samples; set data.seq_len={stretched} or data.pack=none with batch.micro_size=1"
        )
    if problems:
        raise ConfigError(problems)


def _stretched_from(config: Any) -> int:
    """The number of tokens beyond which the model's rotary frequencies depend on the input's length (0: they never do).

    In transformers' ``dynamic_rope_update``, dynamic NTK grows beyond ``max_position_embeddings``, and LongRoPE (Ding
    et al. 2024) changes its factors beyond ``original_max_position_embeddings``.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings")
        return int(original or getattr(config, "original_max_position_embeddings", 0) or config.max_position_embeddings)
    return int(config.max_position_embeddings) if kind == "dynamic" else 0


def _for_training(config: Any, kind: Family, cfg: RunConfig) -> list[str]:
    """Change ``config`` for training; return one note per change that concerns the user."""
    notes = []
    config.use_cache = False  # with a cache, transformers mixes the samples of a row
    config.pad_token_id = None  # otherwise that token's embedding, often the end of sequence, gets no gradient
    for key in kind.dropouts:
        if getattr(config, key, 0.0):
            notes.append(
                f"the base's {key}={getattr(config, key)} is set to 0, because the loss must depend on the batch alone"
            )
            setattr(config, key, 0.0)
    trained_for = getattr(config, "max_position_embeddings", None)
    if not kind.position_limit and trained_for and cfg.data.seq_len > trained_for:
        notes.append(
            f"data.seq_len={cfg.data.seq_len} is more than the {trained_for} positions that the base was trained with"
        )
    return notes


def _for_generation(model: Any, *, pad_id: int, stop_ids: tuple[int, ...]) -> None:
    """Set greedy decoding that stops where the corpus's answers end, without the base's sampling settings."""
    from transformers import GenerationConfig

    ends = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad_id)
