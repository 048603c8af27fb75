"""A run's model as one of its checkpoints left it, in one process and without DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf.compose import load
from conf.errors import ConfigError, MissingInput, StorageError
from conf.schema import AttentionConfig, RunConfig
from data_prep.identity import prepare_command
from data_prep.prepared import open_prepared
from data_prep.shards import Corpus
from data_prep.tokenizer import Tokenizer
from data_prep.tokenizer import load as load_tokenizer
from train.attention import Attention
from train.checkpoint.layout import Stored, latest_good, read_weights
from train.distributed import Ranks, ranks_from_environment
from train.model import build
from train.resume import check_same_inputs
from train.tuning import trainable


@dataclass(frozen=True)
class Restored:
    run_dir: Path
    cfg: RunConfig
    corpus: Corpus
    tokenizer: Tokenizer
    model: torch.nn.Module
    """With tuning applied and the checkpoint's weights, on ``ranks.device``, in evaluation mode."""
    attention: Attention
    ranks: Ranks
    step: int


def run_config(run_dir: Path) -> RunConfig:
    """The frozen config of a run. Raises MissingInput if the folder is not one of a run."""
    path = run_dir / "run.yaml"
    if not path.is_file():
        raise MissingInput(f"run_dir={run_dir}: no run.yaml in it, so it is not the folder of a run; check run_dir")
    return load(path)


def restored(run_dir: Path, step: int | None = None) -> Restored:
    """The model of ``run_dir`` at checkpoint ``step`` (None: the newest that verifies).

    Raises MissingInput (66) for what is not there, StorageError (74) if no checkpoint verifies or its weights do not
    fit, ConfigError (78) for another base model or tokenizer, or when started as one of several processes.
    """
    # The folder may have been moved or copied since the run, and this machine may not have the run's kernels.
    cfg = replace(run_config(run_dir), run_dir=str(run_dir), attention=AttentionConfig(backend="auto"))
    # How training cut its rows up is no matter here: any backend will do, and one process.
    cfg = replace(cfg, data=replace(cfg.data, share_prefix=False), compute=replace(cfg.compute, sequence_parallel=1))
    ranks = ranks_from_environment(cfg.compute.threads)
    if ranks.world > 1:
        raise ConfigError("this command is one process; start it with `python -m`, not with torchrun")
    path = latest_good(run_dir, step)
    corpus = open_prepared(cfg, verify="sizes", hint=prepare_command(cfg))
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    built = build(
        cfg,
        ranks,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        init_context=nullcontext(),
    )
    stored = Stored(path, json.loads((path / "MANIFEST.json").read_text()))
    check_same_inputs(stored, base_hash=built.base_hash, tokenizer=tokenizer.fingerprint)
    load_weights(built.model, read_weights(path), path)
    built.model.to(ranks.device).eval()
    return Restored(run_dir, cfg, corpus, tokenizer, built.model, built.attention, ranks, stored.step)


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
