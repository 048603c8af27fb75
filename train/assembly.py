"""Builds the parts of a run once, in order, and restores them from the last good checkpoint."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from conf.checks.changes import changed_settings, data_as_allowed
from conf.compose import save_config, to_record
from conf.errors import BadData, ConfigError
from conf.schema import FullTuning, RunConfig
from data_prep.corpus.kinds import check_kind
from data_prep.corpus.shards import Corpus, Split
from data_prep.stream.stream import Stream
from data_prep.templates import choose
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from train.attention import Attention
from train.batches.feed import Feed
from train.checkpoint.commit import sweep
from train.checkpoint.layout import Stored
from train.checkpoint.random_states import set_random_states
from train.checkpoint.resume import MadeFrom, check_same_inputs, find_start, refuse_lacking, resume_from, was_finished
from train.copies import HELD, Copier, copier_of
from train.engine import Engine, deepspeed_settings, loading_context
from train.evaluate.evaluation import open_further
from train.model.build import Built, TokenIds, build
from train.objectives import Objective, objective_of
from train.plan import number, refuse_empty_steps
from train.process.faultpoint import faultpoint
from train.process.run_dir import append
from train.ranks.determinism import check_threads, seed_everything
from train.ranks.group import Ranks
from train.state import TrainState
from train.tracking.device import Straggler
from train.tracking.tracker import Tracker, trackers, truncate_after
from train.tuning import trainable


@dataclass
class Run:
    """The parts of a run; ``assemble`` builds every part once."""

    cfg: RunConfig
    run_dir: Path
    ranks: Ranks
    attempt: int
    corpus: Corpus
    tokenizer: Tokenizer
    stream: Stream
    feed: Feed
    objective: Objective
    engine: Engine
    attention: Attention
    made_from: MadeFrom
    state: TrainState
    tracker: Tracker
    total_steps: int
    finished: bool
    """Whether an earlier attempt ended with code 0."""
    config: dict[str, Any]
    """The resolved config as records keep it: plain values without secrets."""
    model_config: dict[str, Any]
    """The model's config.json as plain values."""
    code: tuple[str, ...]
    """What of the base's folder ran as code (``Built.code``)."""
    notes: tuple[str, ...]
    """What differs from the base's config (``Built.notes``)."""
    changed: dict[str, tuple[Any, Any]]
    """Settings that differ from those of the checkpoint that the run continues from: (old, new) by dotted path."""
    straggler: Straggler
    copier: Copier | None
    """On the first rank, with ``checkpoint.copy_to``."""

    @property
    def splits(self) -> Sequence[Split]:
        """The training splits in the order of ``stream.names``."""
        return self.feed.splits


def assemble(cfg: RunConfig, run_dir: Path, ranks: Ranks, attempt: int, corpus: Corpus, state: TrainState) -> Run:
    """Build every part; continue from the last good checkpoint if there is one."""
    stored = find_start(cfg, run_dir, ranks)
    finished = ranks.broadcast(was_finished(run_dir) if ranks.is_main else False)
    if ranks.is_main:
        sweep(run_dir, f"{HELD}*")  # nothing is copied yet
        faultpoint("start.swept")
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    check_own_tokenizer(tokenizer, corpus)
    check_tokenizer(cfg, corpus, ranks)
    open_further(cfg, corpus.tokenizer_fingerprint)  # to report a wrong corpus now, not at the first evaluation
    splits = corpus.split("train")
    for split in splits.values():
        check_kind(split.name, split.kind, cfg.objective)
    refuse_empty_steps(cfg, splits)
    global_size = number(cfg.batch.global_size)
    data, max_steps = data_as_allowed(cfg), cfg.schedule.max_steps
    stream = Stream(splits, data, seed=cfg.seed, global_size=global_size, max_steps=max_steps)
    if stored is not None:  # before the model is loaded
        changed_since(stored, cfg)
        stream.compare(stored.manifest.get("stream", {}))
    seed_everything(cfg.seed, ranks.rank)
    ids = TokenIds.of(tokenizer, corpus.new_ids)
    built, engine = model_and_engine(cfg, ranks, ids)
    faultpoint("start.model")
    made_from = MadeFrom(built.base_hash, built.base_config, corpus.tokenizer_fingerprint, built.base_files)
    load = partial(restore, engine=engine, stream=stream, state=state, made_from=made_from)
    stored = resume_from(stored, run_dir, ranks, load)
    faultpoint("start.restored", state.step)
    total_steps = stream.total_steps()  # now, because an order that has changed begins where the run stands
    changed = changed_since(stored, cfg)  # it may be an older one by now
    cut_back(run_dir, state.step if stored is not None else -1, ranks)
    config = to_record(cfg)
    if ranks.is_main:
        save_config(cfg, run_dir / "run.yaml")  # only now: a start that is refused leaves that of the run
    return Run(
        cfg=cfg,
        run_dir=run_dir,
        ranks=ranks,
        attempt=attempt,
        corpus=corpus,
        tokenizer=tokenizer,
        stream=stream,
        feed=feed_of(cfg, ranks, [splits[name] for name in stream.names], built, tokenizer.pad_id),
        objective=objective_for(cfg, ranks, ids),
        engine=engine,
        attention=built.attention,
        made_from=made_from,
        state=state,
        tracker=trackers(cfg, run_dir, ranks, total_steps, config),
        total_steps=total_steps,
        finished=finished,
        config=config,
        model_config=built.model.config.to_dict(),  # type: ignore[operator,union-attr]
        code=built.code,
        notes=built.notes,
        changed=changed,
        straggler=Straggler(ranks.gather(socket.gethostname())),
        copier=copier_of(cfg, run_dir, ranks),
    )


def changed_since(stored: Stored | None, cfg: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of the checkpoint; none without one. Raises ConfigError for what may not."""
    return {} if stored is None else changed_settings(cfg, stored.config, stored.step)


def feed_of(cfg: RunConfig, ranks: Ranks, splits: Sequence[Split], built: Built, pad_id: int) -> Feed:
    """The batches of the training splits, laid out for the model's attention."""
    return Feed(
        splits=splits,
        layout=built.attention.layout,
        pad_id=pad_id,
        ranks=ranks,
        micro_size=number(cfg.batch.micro_size),
        dealt="turns" if cfg.compute.reproducible else "blocks",
    )


def model_and_engine(cfg: RunConfig, ranks: Ranks, ids: TokenIds) -> tuple[Built, Engine]:
    """The model of ``cfg`` and the engine that trains it. Collective; needs the process group."""
    if cfg.compute.reproducible:
        check_threads(cfg.compute, ranks.device)
    settings = deepspeed_settings(
        model=cfg.model,
        zero=cfg.zero,
        optim=cfg.optim,
        batch=cfg.batch,
        world=ranks.world,
        slices=ranks.slices,
        on_cpu=ranks.device.type == "cpu",
    )
    built = build(cfg, ranks, ids, loading_context(settings))
    parameters = trainable(built.model)
    engine = Engine(built.model, parameters, settings=settings, optim=cfg.optim, zero=cfg.zero, ranks=ranks)
    if cfg.compute.reproducible:
        engine.sum_in_order()
    return built, engine


def objective_for(cfg: RunConfig, ranks: Ranks, ids: TokenIds) -> Objective:
    """The objective of ``cfg``, with the frozen base if it needs one: whole on every rank, without gradients."""
    if cfg.objective.FACTS.base == "unused":
        return objective_of(cfg, None)
    plain = replace(cfg, tuning=FullTuning(method="full"), model=replace(cfg.model, recompute="none"))
    return objective_of(cfg, build(plain, ranks, ids).model.requires_grad_(False).eval().to(ranks.device))


def check_own_tokenizer(tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Refuse a corpus whose tokenizer folder differs from the tokenizer of its samples (65)."""
    if tokenizer.fingerprint != corpus.tokenizer_fingerprint:
        raise BadData(
            f"{corpus.path / 'tokenizer'} is not the tokenizer that the corpus was prepared with (fingerprints "
            f"{tokenizer.fingerprint[:12]} and {corpus.tokenizer_fingerprint[:12]}); restore the folder, or prepare "
            "the corpus again"
        )


def check_tokenizer(cfg: RunConfig, corpus: Corpus, ranks: Ranks) -> None:
    """Refuse a model whose tokenizer differs from the tokenizer of the corpus (78)."""
    reference = cfg.model.tokenizer or cfg.model.path
    if reference is None or reference == "train":
        return
    problem = ""
    if ranks.is_main:
        trust = cfg.model.trust_remote_code
        found = load_tokenizer(reference, cfg.model.revision, cfg.model.new_tokens, trust_remote_code=trust)
        own = load_tokenizer(str(corpus.path / "tokenizer"))
        if found.text_fingerprint != own.text_fingerprint:
            problem = (
                f"model.tokenizer: {reference} is not the tokenizer that {corpus.path} was prepared with (fingerprints "
                f"{found.text_fingerprint[:12]} and {own.text_fingerprint[:12]}), so token ids would mean other words; "
                "prepare the data again with this model, or set model.tokenizer to the corpus's tokenizer"
            )
        elif not choose.gives(found, cfg.data, own.chat_template):
            problem = (
                f"data.chat_template: {reference} has another chat template than {corpus.path} was prepared with; "
                "prepare the data again, or set model.tokenizer to the corpus's tokenizer"
            )
    problem = ranks.broadcast(problem)
    if problem:
        raise ConfigError(problem)


def restore(stored: Stored, *, engine: Engine, stream: Stream, state: TrainState, made_from: MadeFrom) -> None:
    """Restore weights, moments, data cursor, counters and random states from ``stored``. Collective.

    ``made_from``: this run's base and tokenizer. Raises ConfigError for a checkpoint of others, and Damaged on every
    rank if one cannot read its part; then another checkpoint can be restored.
    """
    check_same_inputs(stored, made_from)
    refuse_lacking(stored, "state", "stream")
    ranks = engine.ranks
    with stored:
        states = ranks.together(lambda: stored.rng(ranks.rank))
        engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"], stored.extras)
    stream.load_state_dict(stored.manifest["stream"])
    if states is not None and stored.manifest["world"] == ranks.world:
        set_random_states(states, ranks)
    state.load(stored.manifest["state"])
    state.restarts += 1


def cut_back(run_dir: Path, step: int, ranks: Ranks) -> None:
    """Remove the lines of steps after ``step`` (-1: all lines), which the run repeats, so that a step has one line.

    A ledger that does not hold every step until ``step`` is told: nothing can bring its lines back.
    """
    if not ranks.is_main:
        return
    events, ledger = run_dir / "events.jsonl", run_dir / "ledger.jsonl"
    removed = {path.name: truncate_after(path, step) for path in (run_dir / "metrics.jsonl", ledger)}
    if any(removed.values()):
        append(events, {"time": time.time(), "kind": "cut_back", "step": step, "removed": removed})
    held = ledger.read_bytes().count(b'"digest"') if ledger.is_file() else 0
    if held < step:
        text = f"{ledger} holds {held} of the {step} steps until the checkpoint; the other lines are lost"
        append(events, {"time": time.time(), "kind": "warning", "step": step, "text": text})
        print(f"warning: {text}", flush=True)
