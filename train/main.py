"""One run, from a config to a finished model: build the parts in order, drain the loop, act on every report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from conf.attempts.owner import successor
from conf.checks.changes import in_words
from conf.errors import InternalError, Requeue
from conf.exits import attempt_of, mark_start, reserve
from conf.schema import RunConfig
from conf.whole_numbers import ceil_div
from data_prep.corpus.identity import prepare_command
from data_prep.corpus.prepared import open_prepared
from data_prep.stream.order import summary
from train.assembly import Run, assemble
from train.batches.slices import in_teams
from train.copies import bring_home
from train.engine import init_distributed
from train.engine.engine import close_distributed
from train.evaluate.evaluation import evaluate_all, held_out_splits, open_further, write_samples
from train.guard.guard import Guard
from train.loop import StepReport, training_steps
from train.optim import lr_at
from train.plan import GIB, accumulation_steps, asks_memory, is_open, number, settle, size_chosen
from train.process.ending import Close, leave
from train.process.faultpoint import faultpoint
from train.process.out_of_memory import Witness, planned_memory
from train.process.preempt import StopRequest
from train.process.run_dir import claim
from train.ranks.determinism import fix_kernels
from train.ranks.environment import environment_in_force
from train.ranks.group import Ranks, on_device, ranks_from_environment
from train.ranks.step import Signs
from train.recording import Saving, end_copies, record, warn
from train.report import write_report
from train.state import TrainState, due
from train.tracking.device import Sensors
from train.tracking.metrics import count, peak_memory_gib
from train.tracking.profile import Profiler
from train.tracking.warnings import Facts, cut_answers, notes_of, warnings_of
from train.verify.repeats import check_repeats
from train.watchdog.heartbeat import heart


def run(
    cfg: RunConfig,
    ranks: Ranks,
    attempt_box: list[int],
    argv: Sequence[str],
    state: TrainState,
    closing: list[Close],
) -> None:
    """Train ``cfg`` on this rank until the data ends, ``max_steps`` is reached or the run is asked to stop.

    ``ranks``: as the environment says, without a device. ``closing`` gets what is to be closed when the run has ended,
    the last first.
    """
    run_dir = Path(cfg.run_dir)
    stop = StopRequest(polls=ranks.local_rank == 0, successor=lambda: successor(run_dir, attempt_box[0]))
    if ranks.is_main:
        lock = claim(run_dir, attempt_box[0])
        closing.append(lambda _: lock.close())
        mark_start(run_dir, attempt_box[0])
    reserve(run_dir, attempt_box[0], ranks.rank)
    faultpoint("start.claimed")
    ranks = on_device(ranks, cfg.compute.threads)
    if cfg.compute.deterministic:
        fix_kernels()
    verify: Literal["hashes", "sizes"] = "hashes" if ranks.local_rank == 0 else "sizes"
    # Splits are mapped after the process group exists, so after the first rank of every node has checked its files.
    corpus = open_prepared(cfg, verify=verify, hint=prepare_command(cfg, argv))
    faultpoint("start.corpus")
    ranks = init_distributed(ranks, flight_records(run_dir, attempt_box[0], ranks))
    closing.append(lambda code: None if code else close_distributed())
    faultpoint("start.group")
    bring_home(cfg, run_dir, ranks)
    asked = cfg
    cfg = settle(cfg, nodes=ceil_div(ranks.world, ranks.local_world), per_node=min(ranks.world, ranks.local_world))
    closing.append(Witness(cfg, ranks, lambda: attempt_box[0]))
    ranks = in_teams(ranks, cfg.compute.sequence_parallel)
    attempt_box[0] = ranks.broadcast(attempt_box[0])
    if ranks.any(stop.pending()):
        raise Requeue(f"stopped before the model was loaded because of {stop.reason}")
    parts = assemble(cfg, run_dir, ranks, attempt_box[0], corpus, state)
    closing.append(parts.tracker.close)
    closing.append(partial(end_copies, parts))
    announce(parts)
    if is_open(asked):
        note_choice(parts, asked)
    if cfg.compute.deterministic:
        check_repeats(parts)
    faultpoint("start.ready")
    drain(parts, stop)


def flight_records(run_dir: Path, attempt: int, ranks: Ranks) -> Path:
    """Where NCCL's flight recorder writes after a timeout: beside the logs, one file per attempt and rank."""
    logs = run_dir / "logs"
    if ranks.is_main and ranks.device.type == "cuda":
        logs.mkdir(exist_ok=True)  # a launcher has made it; plain torchrun has not
    return logs / f"flight-{attempt}-rank-"


def announce(run: Run) -> None:
    """Record the start or resume, with the values that the run derived from its config."""
    kind = "resume" if run.state.step else "start"
    run.tracker.event(
        kind,
        step=run.state.step,
        attempt=run.attempt,
        world=run.ranks.world,
        total_steps=run.total_steps,
        accumulation=accumulation_steps(run.cfg.batch, run.ranks.readers),
        attention=run.attention.name,
        environment=environment_in_force(),
        zero_stage=run.cfg.zero.stage,
        trainable_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in run.engine.parameters.values()),
    )
    if run.code:
        run.tracker.event("foreign_code", step=run.state.step, folder=run.cfg.model.path, code=list(run.code))
    facts = facts_of(run)
    for text in (*run.notes, *notes_of(run.cfg, facts)):
        run.tracker.event("note", step=run.state.step, text=text)
        run.tracker.note(text)
    if run.state.step < run.total_steps:
        for text in warnings_of(run.cfg, facts):
            warn(run, text)
    if run.stream.changes:
        run.tracker.event("data_changed", step=run.state.step, changed=run.stream.changes)
        run.tracker.note(f"the order of samples changes here: {summary(run.stream.changes)}")
    if run.changed:
        run.tracker.event("config_changed", step=run.state.step, changed={k: list(v) for k, v in run.changed.items()})
    for text in in_words(run.changed, run.cfg) if run.state.step else ():
        run.tracker.note(text)


def facts_of(run: Run) -> Facts:
    """What warnings need to know of the run."""
    further = open_further(run.cfg, run.corpus.tokenizer_fingerprint)
    evaluated = held_out_splits(run.corpus.split("validation"), further)
    data, rows = run.cfg.data, sum(split.rows for split in run.splits)
    packed = ceil_div(sum(run.stream.planner.tokens), data.seq_len) if data.pack == "exact" else rows
    return Facts(
        total_steps=run.total_steps,
        goes_on=run.stream.goes_on(),
        pass_steps=ceil_div(packed, number(run.cfg.batch.global_size)),
        held_out={name: split.rows for name, split in evaluated.items()},
        readers=run.ranks.readers,
    )


def note_choice(run: Run, asked: RunConfig) -> None:
    """Report the values that replaced ``auto``; run.yaml keeps them for later attempts."""
    chosen = {
        "zero.stage": run.cfg.zero.stage,
        "model.recompute": run.cfg.model.recompute,
        "batch.micro_size": run.cfg.batch.micro_size,
        "batch.global_size": run.cfg.batch.global_size,
    }
    global_size = size_chosen(asked, run.cfg)
    run.tracker.event("chosen", step=run.state.step, **chosen, why=global_size)
    if asks_memory(asked):
        run.tracker.note("plan: " + ", ".join(f"{key}={value}" for key, value in chosen.items()))
    if global_size:
        run.tracker.note(global_size)


def compare_memory(run: Run) -> None:
    """On a GPU, log the planned peak of allocated memory and note it with the measured peak."""
    if run.ranks.device.type != "cuda":
        return
    planned = planned_memory(run.cfg, run.model_config, run.ranks)
    predicted = (planned.device - planned.context - planned.fragmentation) / GIB
    run.tracker.log(run.state.step, {"memory/predicted_gib": predicted})
    measured = peak_memory_gib()
    run.tracker.note(f"peak memory: planned {predicted:.2f} GiB ({planned.phase}), measured {measured:.2f} GiB")


def drain(run: Run, stop: StopRequest) -> None:
    """Take every step of the run, and checkpoint, evaluate and log when due.

    The checkpoint comes before the evaluation of the same step, so that an evaluation that fails loses nothing.
    """
    if run.finished and run.state.step >= run.total_steps:
        run.tracker.note(f"nothing to do: {run.run_dir} finished at step {run.state.step}")
        return
    saving = Saving(run, saved_at=run.state.step)
    guard = Guard(run, saving)
    stop.outcome = saving.stopped
    if run.cfg.evaluation.at_start and run.state.step == 0:
        evaluate(run, saving, stop)
    for report in steps(run, saving, stop, guard):
        count(run.state, report, run.stream.names)
        guard.notice(report)
        record(run, report)
        faultpoint("step.recorded")
        saving.go_on(report.signs)
        guard.act(report)
        # A step that was skipped may be the first of many: the checkpoints before it are still good.
        if saving.now(report.signs, report.skipped):
            saving.save()
        if report.signs.stop:
            saving.settle()
            raise saving.stopped(stop.reason)
        if due(run.state.step, run.cfg.evaluation.every_steps) and run.state.step < run.total_steps:
            evaluate(run, saving, stop)
    saving.settle()
    if saving.saved_at != run.state.step:
        saving.save(must=True)
    faultpoint("end.saved")
    if run.cfg.evaluation.at_end:
        evaluate(run, saving, stop)
    saving.wait_for_copies()
    compare_memory(run)
    run.tracker.event("end", step=run.state.step)
    faultpoint("end.report")
    if run.ranks.is_main:
        write_report(run.run_dir)


def steps(run: Run, saving: Saving, stop: StopRequest, guard: Guard) -> Iterator[StepReport]:
    """Generate this run's step reports."""
    cfg, sensors = run.cfg, Sensors(run.ranks.device)
    reports = training_steps(
        run.engine,
        run.stream,
        run.feed,
        run.objective,
        lr_at=partial(lr_at, optim=cfg.optim, schedule=cfg.schedule, total_steps=run.total_steps),
        says=lambda busy: (saving.signs(stop.pending()), sensors.read(busy)),
        accept=guard.accepts,
    )
    if not (run.ranks.is_main and cfg.tracker.profile_steps):
        return reports
    profiler = Profiler(cfg.tracker.profile_steps, run.run_dir / "profile", run.tracker.note)
    return profiler.watch(reports, after=run.state.step)


def evaluate(run: Run, saving: Saving, stop: StopRequest) -> None:
    """Log held-out loss and scores, and write answers to samples/. Raises how the run ends if it is asked to stop."""

    def check() -> None:
        stopping, writing = (each > 0 for each in run.ranks.sum([stop.pending(), saving.saver.writing]))
        saving.go_on(Signs(writing=writing))
        if stopping:
            saving.settle()
            raise saving.stopped(f"{stop.reason}, during an evaluation")

    metrics, samples = evaluate_all(
        run.engine.module,
        run.corpus,
        run.cfg,
        tokenizer=run.tokenizer,
        attention=run.attention,
        ranks=run.ranks,
        check=check,
    )
    faultpoint("evaluation.end")
    saving.settle()
    run.tracker.log(run.state.step, metrics)
    if run.state.step and not all(
        map(math.isfinite, (value for name, value in metrics.items() if name.endswith("loss")))
    ):
        raise InternalError(
            f"the held-out loss after step {run.state.step} is not finite, so the model has not learnt; lower optim.lr"
        )
    if run.ranks.is_main:
        write_samples(run.run_dir, run.state.step, samples)
    if run.state.step:  # a model that has learnt nothing yet does not stop
        for text in cut_answers(samples, run.cfg.evaluation.max_new_tokens):
            warn(run, text)


def start(cfg: RunConfig, argv: Sequence[str]) -> int:
    """Run ``cfg``, composed from the overrides ``argv``, on this rank and return the exit code."""
    ranks = ranks_from_environment()
    run_dir = Path(cfg.run_dir)
    box = [heart.attempt if heart.watched else attempt_of(run_dir)]
    body = partial(run, cfg, ranks, box, argv)
    return leave(body, run_dir=run_dir, ranks=ranks, attempt=lambda: box[0])
