"""A run's model as one of its checkpoints left it, in one process and without DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf.compose import load_config
from conf.errors import ConfigError, MissingInput, StorageError
from conf.schema import AttentionConfig, RunConfig
from data_prep.corpus.identity import prepare_command
from data_prep.corpus.prepared import open_prepared
from data_prep.corpus.shards import Corpus
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from train.attention import Attention
from train.checkpoint.check import latest_good
from train.checkpoint.layout import read_weights
from train.checkpoint.resume import MadeFrom, check_same_inputs
from train.model.build import TokenIds, build
from train.ranks.group import Ranks, on_device, ranks_from_environment
from train.tuning import trainable


@dataclass(frozen=True)
class Reopened:
    run_dir: Path
    cfg: RunConfig
    corpus: Corpus
    tokenizer: Tokenizer
    model: torch.nn.Module
    """With tuning applied and the checkpoint's weights, on ``ranks.device``, in evaluation mode."""
    attention: Attention
    ranks: Ranks
    step: int
    code: tuple[str, ...] = ()
    """What of the base's folder ran as code."""


def run_config(run_dir: Path) -> RunConfig:
    """The frozen config of a run. Raises MissingInput if the folder is not one of a run."""
    path = run_dir / "run.yaml"
    if not path.is_file():
        raise MissingInput(f"run_dir={run_dir}: no run.yaml in it, so it is not the folder of a run; check run_dir")
    cfg = load_config(path)
    # A run may be a stranger's: only a command line says that code may run.
    return replace(cfg, model=replace(cfg.model, trust_remote_code=False))


def reopen(run_dir: Path, step: int | None = None, cfg: RunConfig | None = None) -> Reopened:
    """The model of ``run_dir`` at checkpoint ``step`` (None: the newest that verifies).

    ``cfg`` is the run's config with what a command line changes in it; None: as it was frozen.

    Raises MissingInput (66) for a missing file or folder, StorageError (74) if no checkpoint verifies or its weights
    do not fit, ConfigError (78) for another base model or tokenizer, or when started as one of several processes.
    """
    # The folder may have been moved or copied since the run, and this machine may not have the run's kernels.
    cfg = replace(cfg or run_config(run_dir), run_dir=str(run_dir), attention=AttentionConfig(backend="auto"))
    # How training packed and sliced its rows does not matter here: any backend and one process suffice.
    cfg = replace(cfg, data=replace(cfg.data, share_prefix=False), compute=replace(cfg.compute, sequence_parallel=1))
    ranks = ranks_from_environment()
    if ranks.world > 1:
        raise ConfigError("this command is one process; start it with `python -m`, not with torchrun")
    ranks = on_device(ranks, cfg.compute.threads)
    stored = latest_good(run_dir, step)
    corpus = open_prepared(cfg, verify="sizes", hint=prepare_command(cfg))
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    built = build(cfg, ranks, TokenIds.of(tokenizer, corpus.new_ids))
    check_same_inputs(stored, MadeFrom(built.base_hash, built.base_config, tokenizer.fingerprint, built.base_files))
    load_weights(built.model, read_weights(stored.path), stored.path)
    built.model.to(ranks.device).eval()
    return Reopened(run_dir, cfg, corpus, tokenizer, built.model, built.attention, ranks, stored.step, built.code)


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Copy fp32 ``weights`` into the trainable parameters of the same names. StorageError if the two do not match."""
    parameters = trainable(model)
    missing, unknown = parameters.keys() - weights.keys(), weights.keys() - parameters.keys()
    wrong = [name for name in parameters.keys() & weights.keys() if parameters[name].shape != weights[name].shape]
    if missing or unknown or wrong:
        example = sorted([*missing, *unknown, *wrong])[0]
        raise StorageError(
            f"{where} does not fit the model of run.yaml: {len(missing)} weights are missing, {len(unknown)} unknown, "
            f"{len(wrong)} of another shape (first: {example}); the run folder mixes two runs, or run.yaml was edited"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
