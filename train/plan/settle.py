"""From a config with open settings to the one that runs: what the corpus says, what an earlier attempt chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from conf.foreign.json_file import object_if_there
from conf.frozen import load_config
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.manifest_shape import problem
from train.plan.answer import UNKNOWN, Corpus
from train.plan.choice import asks_memory, is_open, keep_frozen, resolve
from train.plan.global_size import batch_size
from train.plan.model_config import read_model_config

RAGGED = 1.25
"""A micro-batch may hold more targets than the corpus's mean: memory is planned for so many times the share. An
estimate; rows of packed samples vary less."""


def corpus_of(cfg: RunConfig) -> Corpus:
    """Rows, tokens and share of targets of the prepared corpus of ``cfg``; UNKNOWN without one.

    A broken manifest counts as none: naming it, with its exit code, is training's task.
    """
    manifest = Path(corpus_path(cfg)) / "MANIFEST.json"
    if not manifest.is_file():
        return UNKNOWN
    found = object_if_there(manifest)
    if problem(found):
        return UNKNOWN
    splits = [source["splits"]["train"] for source in found["sources"].values() if "train" in source["splits"]]
    rows, tokens, targets = (sum(split[key] for split in splits) for key in ("rows", "tokens", "supervised_tokens"))
    return Corpus(rows, tokens, min(1.0, RAGGED * targets / tokens)) if rows and tokens else UNKNOWN


def settle(cfg: RunConfig, *, nodes: int, per_node: int) -> RunConfig:
    """``cfg`` without ``auto`` for ``nodes`` x ``per_node`` ranks; the same on every rank that asks.

    A run that has checkpoints keeps what its run.yaml says. Raises ConfigError if nothing fits, MissingInput if the
    model's shape cannot be had here.
    """
    if not is_open(cfg):
        return cfg
    frozen = Path(cfg.run_dir) / "run.yaml"
    if frozen.is_file() and any(frozen.parent.glob("checkpoints/step-*")):
        return keep_frozen(cfg, load_config(frozen))
    if cfg.batch.global_size == "auto":
        cfg = replace(cfg, batch=replace(cfg.batch, global_size=batch_size(cfg).rows))
    if not asks_memory(cfg):
        return cfg
    sized = replace(cfg, cluster=replace(cfg.cluster, nodes=nodes, gpus_per_node=per_node))
    return replace(
        resolve(sized, read_model_config(cfg.model), corpus_of(cfg).supervised),
        cluster=cfg.cluster,
    )
