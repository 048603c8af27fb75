"""The parts of a run, built once and in order, and put back where the last good checkpoint left them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.compose import save
from conf.errors import BadData, ConfigError
from conf.exits import mark_start
from conf.schema import RunConfig, to_dict
from data_prep.shards import Corpus, Split
from data_prep.stream import Stream
from data_prep.tokenizer import Tokenizer
from data_prep.tokenizer import load as load_tokenizer
from train.attention import Attention
from train.checkpoint.commit import set_random_states, sweep
from train.checkpoint.layout import Stored
from train.determinism import seed_everything
from train.distributed import Ranks
from train.engine import Engine, deepspeed_settings, loading_context
from train.evaluate import open_further
from train.model import build
from train.resume import check_same_inputs, find_start, was_finished
from train.run_dir import append
from train.state import TrainState
from train.tracker import Tracker, trackers, truncate_after
from train.tuning import trainable


@dataclass
class Run:
    """The parts of a run, built once, in this order."""

    cfg: RunConfig
    run_dir: Path
    ranks: Ranks
    attempt: int
    corpus: Corpus
    tokenizer: Tokenizer
    splits: list[Split]
    stream: Stream
    engine: Engine
    attention: Attention
    base_hash: str
    state: TrainState
    tracker: Tracker
    total_steps: int
    finished: bool
    """An earlier attempt ended with code 0."""
    config: dict[str, Any]
    """The resolved config as plain values."""
    model_config: dict[str, Any]
    """The model's config.json as plain values."""


def assemble(cfg: RunConfig, run_dir: Path, ranks: Ranks, attempt: int, corpus: Corpus, state: TrainState) -> Run:
    """Build every part; continue from the last good checkpoint if there is one."""
    stored = ranks.broadcast(find_start(cfg, run_dir) if ranks.is_main else None)
    finished = ranks.broadcast(was_finished(run_dir) if ranks.is_main else False)
    if ranks.is_main:
        mark_start(run_dir, attempt)
        sweep(run_dir)
        save(cfg, run_dir / "run.yaml")
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    check_own_tokenizer(tokenizer, corpus)
    check_tokenizer(cfg, corpus, ranks)
    open_further(cfg, corpus.tokenizer_fingerprint)  # so that a wrong one is told now and not at the first evaluation
    splits = corpus.split("train")
    stream = Stream(
        splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size, max_steps=cfg.schedule.max_steps
    )
    total_steps = stream.total_steps()
    seed_everything(cfg.seed, ranks.rank)
    settings = deepspeed_settings(
        model=cfg.model,
        zero=cfg.zero,
        optim=cfg.optim,
        batch=cfg.batch,
        world=ranks.world,
        slices=ranks.slices,
        on_cpu=ranks.device.type == "cpu",
    )
    built = build(
        cfg,
        ranks,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        init_context=loading_context(settings),
    )
    parameters = trainable(built.model)
    engine = Engine(built.model, parameters, settings=settings, optim=cfg.optim, zero=cfg.zero, ranks=ranks)
    if stored is not None:
        restore(stored, engine, stream, state, ranks, built.base_hash, corpus.tokenizer_fingerprint)
    cut_back(run_dir, state.step if stored is not None else -1, ranks)
    config = to_dict(cfg)
    return Run(
        cfg=cfg,
        run_dir=run_dir,
        ranks=ranks,
        attempt=attempt,
        corpus=corpus,
        tokenizer=tokenizer,
        splits=[splits[name] for name in stream.names],
        stream=stream,
        engine=engine,
        attention=built.attention,
        base_hash=built.base_hash,
        state=state,
        tracker=trackers(cfg, run_dir, ranks, total_steps, config),
        total_steps=total_steps,
        finished=finished,
        config=config,
        model_config=built.model.config.to_dict(),  # type: ignore[operator,union-attr]
    )


def check_own_tokenizer(tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Refuse a corpus whose tokenizer folder is not what its samples were made with (65)."""
    if tokenizer.fingerprint != corpus.tokenizer_fingerprint:
        raise BadData(
            f"{corpus.path / 'tokenizer'} is not the tokenizer that the samples beside it were made with (fingerprints "
            f"{tokenizer.fingerprint[:12]} and {corpus.tokenizer_fingerprint[:12]}); restore it, or prepare the corpus "
            "again."
        )


def check_tokenizer(cfg: RunConfig, corpus: Corpus, ranks: Ranks) -> None:
    """Refuse a model whose tokenizer is not the one the corpus was prepared with (78)."""
    reference = cfg.model.tokenizer or cfg.model.path
    if reference is None or reference == "train":
        return
    problem = ""
    if ranks.is_main:
        found = load_tokenizer(reference, cfg.model.revision).fingerprint
        if found != corpus.tokenizer_fingerprint:
            problem = (
                f"model.tokenizer: {reference} is not the tokenizer that {corpus.path} was prepared with "
                f"(fingerprints {found[:12]} and {corpus.tokenizer_fingerprint[:12]}); its ids would mean other words. "
                f"Prepare the data again with this model, or name the corpus's tokenizer"
            )
    problem = ranks.broadcast(problem)
    if problem:
        raise ConfigError(problem)


def restore(
    stored: Stored, engine: Engine, stream: Stream, state: TrainState, ranks: Ranks, base_hash: str, tokenizer: str
) -> None:
    """Put weights, moments, data cursor, counters and random states back."""
    check_same_inputs(stored, base_hash=base_hash, tokenizer=tokenizer)
    stream.load_state_dict(stored.manifest["stream"])
    with stored:
        engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"])
        states = stored.rng(ranks.rank)
    if states is not None and stored.manifest["world"] == ranks.world:
        set_random_states(states, ranks)
    for key, value in stored.manifest["state"].items():
        setattr(state, key, value)
    state.restarts += 1


def cut_back(run_dir: Path, step: int, ranks: Ranks) -> None:
    """Remove the lines of steps that will be done again, so that each step stands once; -1: all of them."""
    if not ranks.is_main:
        return
    removed = {name: truncate_after(run_dir / name, step) for name in ("metrics.jsonl", "ledger.jsonl")}
    if any(removed.values()):
        append(run_dir / "events.jsonl", {"time": time.time(), "kind": "cut_back", "step": step, "removed": removed})
