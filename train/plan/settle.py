"""From a config with open settings to the one that runs: what the corpus says, what an earlier attempt chose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from conf.frozen import load
from conf.schema import RunConfig
from data_prep.identity import corpus_path
from train.plan.answer import UNKNOWN, Corpus
from train.plan.choice import is_open, keep_frozen, resolve
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
    try:
        splits = [source["splits"]["train"] for source in json.loads(manifest.read_text())["sources"].values()]
        rows, tokens, targets = (sum(split[key] for split in splits) for key in ("rows", "tokens", "supervised_tokens"))
    except (ValueError, KeyError):
        return UNKNOWN
    return Corpus(rows, tokens, min(1.0, RAGGED * targets / tokens)) if rows and tokens else UNKNOWN


def settle(cfg: RunConfig, *, nodes: int, per_node: int) -> RunConfig:
    """``cfg`` without ``auto`` for ``nodes`` x ``per_node`` ranks; the same on every rank that asks.

    A run that has checkpoints keeps what its run.yaml says. Raises ConfigError if nothing fits, MissingInput if the
    model's shape cannot be had here.
    """
    if not is_open(cfg):
        return cfg
    frozen = Path(cfg.run_dir) / "run.yaml"
    if frozen.is_file() and (Path(cfg.run_dir) / "checkpoints" / "LATEST").exists():
        return keep_frozen(cfg, load(frozen))
    sized = replace(cfg, cluster=replace(cfg.cluster, nodes=nodes, gpus_per_node=per_node))
    return replace(
        resolve(sized, read_model_config(cfg.model), corpus_of(cfg).supervised),
        cluster=cfg.cluster,
    )
