"""One run, from a config to a finished model: build the parts in order, drain the loop, act on every report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from conf.errors import CorralError, InternalError, Requeue, StorageError
from conf.exits import next_attempt
from conf.schema import RunConfig
from data_prep.identity import prepare_command
from data_prep.prepared import open_prepared
from train import checkpoint
from train.assembly import Run, assemble
from train.batch import collate
from train.determinism import fix_kernels
from train.distributed import Ranks, ranks_from_environment
from train.ending import leave
from train.engine import init_distributed
from train.engine.engine import close_distributed
from train.evaluate import evaluate_all, write_samples
from train.flops import device_peak, recomputed_flops, step_flops
from train.loop import StepReport, training_steps
from train.metrics import count, peak_memory_gib, step_metrics
from train.optim import lr_at
from train.plan import GIB, accumulation_steps, corpus_of, is_open, number, plan, settle
from train.preempt import StopRequest
from train.report import write_report
from train.resume import changed_settings
from train.run_dir import append, batch_digest, claim
from train.sequence_parallel import in_teams
from train.state import TrainState, due

MAX_SKIPPED_IN_A_ROW = 10
"""Non-finite gradients so often in a row mean that nothing will come of this run."""


def run(cfg: RunConfig, ranks: Ranks, attempt_box: list[int], argv: Sequence[str], state: TrainState) -> None:
    """Train ``cfg`` on this rank until the data ends, ``max_steps`` is reached or the run is asked to stop."""
    run_dir = Path(cfg.run_dir)
    stop = StopRequest()
    if cfg.compute.deterministic:
        fix_kernels()
    lock = claim(run_dir) if ranks.is_main else None
    verify: Literal["hashes", "sizes"] = "hashes" if ranks.local_rank == 0 else "sizes"
    # Splits are mapped after the process group is made, so after every node's first rank has seen to its files.
    corpus = open_prepared(cfg, verify=verify, hint=prepare_command(cfg, argv))
    chose = is_open(cfg)
    cfg = settle(cfg, nodes=-(-ranks.world // ranks.local_world), per_node=min(ranks.world, ranks.local_world))
    changed = changed_settings(cfg, run_dir)
    init_distributed(ranks)
    try:
        ranks = in_teams(ranks, cfg.compute.sequence_parallel)
        attempt_box[0] = ranks.broadcast(attempt_box[0])
        parts = assemble(cfg, run_dir, ranks, attempt_box[0], corpus, state)
        code = 70
        try:
            announce(parts, changed)
            if chose:
                note_choice(parts)
            drain(parts, stop)
            code = 0
        except CorralError as error:
            code = error.code
            raise
        finally:
            parts.tracker.close(code)
    finally:
        close_distributed()
        if lock is not None:
            lock.close()


def announce(run: Run, changed: dict[str, tuple[Any, Any]]) -> None:
    """Say what starts here, with every derived value once."""
    kind = "resume" if run.state.step else "start"
    run.tracker.event(
        kind,
        step=run.state.step,
        attempt=run.attempt,
        world=run.ranks.world,
        total_steps=run.total_steps,
        accumulation=accumulation_steps(run.cfg.batch, run.ranks.readers),
        attention=run.attention.name,
        zero_stage=run.cfg.zero.stage,
        trainable_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in run.engine.parameters.values()),
    )
    if run.stream.changes:
        run.tracker.event("data_changed", step=run.state.step, changed=run.stream.changes)
    if changed and run.state.step:
        run.tracker.event("config_changed", step=run.state.step, changed={k: list(v) for k, v in changed.items()})


def note_choice(run: Run) -> None:
    """Say what ``auto`` became; run.yaml holds it for the attempts to come."""
    chosen = {
        "zero.stage": run.cfg.zero.stage,
        "model.recompute": run.cfg.model.recompute,
        "batch.micro_size": run.cfg.batch.micro_size,
    }
    run.tracker.event("chosen", step=run.state.step, **chosen)
    run.tracker.note("plan: " + ", ".join(f"{key}={value}" for key, value in chosen.items()))


def compare_memory(run: Run) -> None:
    """On a GPU: what the plan said of the memory that is allocated, beside what was."""
    if run.ranks.device.type != "cuda":
        return
    nodes = -(-run.ranks.world // run.ranks.local_world)
    cluster = replace(run.cfg.cluster, nodes=nodes, gpus_per_node=run.ranks.world // nodes)
    planned = plan(replace(run.cfg, cluster=cluster), run.model_config, corpus_of(run.cfg)).chosen
    predicted = (planned.device - planned.context - planned.fragmentation) / GIB
    run.tracker.log(run.state.step, {"memory/predicted_gib": predicted})
    run.tracker.note(f"memory: planned {predicted:.2f} GiB at {planned.phase}, measured {peak_memory_gib():.2f} GiB")


def drain(run: Run, stop: StopRequest) -> None:
    """Every step of the run, and what is due after each."""
    if run.finished and run.state.step >= run.total_steps:
        run.tracker.note(f"nothing to do: {run.run_dir} is finished at step {run.state.step}")
        return
    if run.cfg.evaluation.at_start and run.state.step == 0:
        evaluate(run)
    saved_at, skipped = run.state.step or -1, 0
    for report in steps(run, stop):
        count(run.state, report, run.stream.names)
        record(run, report)
        skipped = skipped + 1 if report.skipped else 0
        if skipped >= MAX_SKIPPED_IN_A_ROW:
            raise InternalError(
                f"the gradients of {skipped} steps in a row up to step {run.state.step} were not finite; nothing was "
                f"changed by them. Lower optim.lr, or look at the samples: skip events in {run.run_dir}/events.jsonl "
                "name their uids, files and rows; the last checkpoint is whole"
            )
        if due(run.state.step, run.cfg.evaluation.every_steps) and run.state.step < run.total_steps:
            evaluate(run)
        if report.stop or due(run.state.step, run.cfg.checkpoint.every_steps):
            saved_at = checkpoint_now(run, saved_at)
        if report.stop:
            raise Requeue(f"checkpointed at step {run.state.step} and left, because of {stop.reason}")
    if saved_at != run.state.step:
        checkpoint_now(run, saved_at, must=True)
    if run.cfg.evaluation.at_end:
        evaluate(run)
    compare_memory(run)
    run.tracker.event("end", step=run.state.step)
    if run.ranks.is_main:
        write_report(run.run_dir)


def steps(run: Run, stop: StopRequest) -> Any:
    """The generator of this run's step reports."""
    cfg = run.cfg
    return training_steps(
        run.engine,
        run.stream,
        run.splits,
        ranks=run.ranks,
        collate=partial(collate, layout=run.attention.layout, pad_id=run.tokenizer.pad_id, device=run.ranks.device),
        lr_at=partial(lr_at, optim=cfg.optim, schedule=cfg.schedule, total_steps=run.total_steps),
        micro_size=number(cfg.batch.micro_size),
        accumulation=accumulation_steps(cfg.batch, run.ranks.readers),
        targets_only=cfg.compute.targets_only_head,
        loss=cfg.loss,
        stop_pending=stop.pending,
    )


def record(run: Run, report: StepReport) -> None:
    """The step's line in the ledger, and its metrics if due."""
    fed = run.ranks.gather(report.uids)
    if run.ranks.is_main:
        line = {
            "step": run.state.step,
            "digest": batch_digest(uid for uids in fed for uid in uids),
            "samples": sum(len(uids) for uids in fed),
            "tokens": report.plan.tokens,
            "targets": report.plan.targets,
        }
        append(run.run_dir / "ledger.jsonl", line)
    if report.skipped:
        samples = origins(run, report)
        run.tracker.event("skip", step=run.state.step, grad_norm=str(report.grad_norm), samples=samples)
    if due(run.state.step, run.cfg.tracker.log_every) or run.state.step == run.total_steps:
        metrics = step_metrics(
            run.state,
            report,
            names=run.stream.names,
            seq_len=run.cfg.data.seq_len,
            world=run.ranks.world,
            flops=step_flops(run.model_config, report.plan, run.cfg),
            recomputed=recomputed_flops(run.model_config, report.plan, run.cfg),
            peak=device_peak(run.ranks.device, run.cfg.model.dtype),
        )
        run.tracker.log(run.state.step, metrics)


def origins(run: Run, report: StepReport) -> list[dict[str, Any]]:
    """Which samples a step read: uid, raw file and the row in it."""
    found = []
    for packed in report.plan.rows:
        for source, row in packed.samples:
            file, index, _ = run.splits[source].origin(row)
            found.append({"uid": f"{run.splits[source].uid(row):016x}", "file": file, "row": index})
    return found


def evaluate(run: Run) -> None:
    """Held-out loss and answers, to the tracker and to samples/."""
    metrics, samples = evaluate_all(
        run.engine.module,
        run.corpus,
        run.cfg,
        tokenizer=run.tokenizer,
        attention=run.attention,
        ranks=run.ranks,
    )
    run.tracker.log(run.state.step, metrics)
    if run.ranks.is_main:
        write_samples(run.run_dir, run.state.step, samples)


def checkpoint_now(run: Run, saved_at: int, *, must: bool = False) -> int:
    """Publish a checkpoint; a failure is said and survived, unless it is the last one. Returns the step saved last."""
    extra = {
        "state": run.state.to_dict(),
        "stream": run.stream.state_dict(),
        "base_hash": run.base_hash,
        "tokenizer": run.corpus.tokenizer_fingerprint,
        "config": run.config,
        "parent": saved_at,
        "versions": versions(),
    }
    run.tracker.sync()
    outcome = checkpoint.save(
        run.run_dir,
        run.engine,
        ranks=run.ranks,
        attempt=run.attempt,
        step=run.state.step,
        extra=extra,
        keep=run.cfg.checkpoint.keep,
    )
    if isinstance(outcome, str):
        run.tracker.event("checkpoint_failed", step=run.state.step, reason=outcome)
        if must:
            raise StorageError(f"the last checkpoint could not be written: {outcome}; free space and start again")
        return saved_at
    run.tracker.event("checkpoint", step=run.state.step, path=str(outcome.path), bytes=outcome.bytes)
    run.tracker.log(run.state.step, {"ckpt/stall_s": outcome.seconds, "ckpt/bytes": outcome.bytes})
    return run.state.step


def versions() -> dict[str, str]:
    """Versions of the libraries whose numerics are in the checkpoint."""
    return {name: version(name) for name in ("torch", "deepspeed", "transformers", "peft", "numpy")}


def start(cfg: RunConfig, argv: Sequence[str]) -> int:
    """Run ``cfg``, composed of the overrides ``argv``, on this rank and return the exit code."""
    ranks = ranks_from_environment(cfg.compute.threads)
    run_dir = Path(cfg.run_dir)
    attempt = int(os.environ["CORRAL_ATTEMPT"]) if os.environ.get("CORRAL_ATTEMPT") else next_attempt(run_dir)
    box = [attempt]
    body: Callable[[TrainState], None] = partial(run, cfg, ranks, box, argv)
    return leave(body, run_dir=run_dir, ranks=ranks, attempt=lambda: box[0])
