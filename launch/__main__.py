"""Compose and check a config, prepare its corpus if that is missing, and start the run.

On this machine (cluster=local) the command supervises the run: when a rank dies, torchrun is started again from the
last good checkpoint. With cluster=slurm it submits slurm/train.sh and exits. `-m key=a,b` starts one run for every
combination of values.

  python -m launch plan experiment=NAME [--json] [--trace] [--sweep nodes=1,8,64 [--plot FILE.png]]
                                                    print memory, time and communication; start nothing
  python -m launch where experiment=NAME            print the folder of the run
  python -m launch preflight experiment=NAME        is this machine fit for the run? (all nodes: slurm/preflight.sh)
  python -m launch status|logs|cancel run_dir=DIR   how a run stands, its log, asking it to stop
  python -m launch --dry-run ...                    print what would be submitted or started; start nothing
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from conf.compose import config_from_argv
from conf.errors import ConfigError, CorralError, describe, leave_with_code
from conf.safety.secrets import redact_text
from conf.schema import RunConfig
from launch.follow import ask_to_stop, show_logs, show_status
from launch.plan import plot as plan_plot
from launch.plan import sweep as plan_sweep
from launch.plan.table import before_start, planned, size, table, to_json, traced
from launch.preflight.command import preflight
from launch.preflight.gpus import listed_gpus
from launch.prepare import ensure_corpus, is_prepared
from launch.run_dir import make_logs, refuse_changes
from launch.slurm import array
from launch.slurm.batch_job import begin, finish
from launch.slurm.submit import shown, steps, submit
from launch.sweep import Combination, combinations, override
from launch.torchrun import job_for, supervise, torchrun_command

PER_CORE = 8
"""Processes that a CPU core can bear in a trial."""
SAID_BY_ITSELF = (0, 65, 66, 69, 71, 73, 77, 78)
"""Codes for which rank 0 has already printed its sentence."""


def main() -> int:
    argv = sys.argv[1:]
    word, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    if word:
        return COMMANDS[word](rest)
    options = {word for word in rest if word in ("-m", "--multirun", "--dry-run")}
    rest = [word for word in rest if word not in options]
    dry = "--dry-run" in options
    return start(rest, dry=dry) if options <= {"--dry-run"} else sweep(rest, dry=dry)


def start(arguments: Sequence[str], *, dry: bool = False) -> int:
    """Start one run, or show (``dry``) what would be started; returns its exit code."""
    cfg, _ = config_from_argv(arguments, command="launch")
    refuse_changes(cfg)
    print(before_start(cfg), flush=True)
    if cfg.cluster.kind == "local":
        return show_start(cfg, arguments) if dry else start_here(cfg, arguments)
    if dry:
        print(shown(steps(cfg, arguments)))
        return 0
    for what, job in submit(cfg, arguments).items():
        said = "submitted as" if what == "train" else "prepares the corpus:" if what == "prepare" else "then evaluates:"
        print(f"corral: {said} job {job}; its log is {Path(cfg.run_dir) / 'logs' / f'slurm-{job}.log'}")
    print(f"corral: python -m launch status run_dir={shlex.quote(cfg.run_dir)} says how it stands (logs, cancel)")
    return 0


def show_start(cfg: RunConfig, arguments: Sequence[str]) -> int:
    """Print the commands of a run on this machine."""
    if not is_prepared(cfg):
        print(redact_text(shlex.join([sys.executable, "-m", "data_prep", *arguments])))
    print(redact_text(shlex.join(torchrun_command(cfg.cluster.gpus_per_node, arguments))))
    return 0


def start_here(cfg: RunConfig, arguments: Sequence[str]) -> int:
    if cfg.cluster.nodes != 1:
        raise ConfigError(
            f"cluster.nodes={cfg.cluster.nodes} with cluster.kind=local: this machine is one node; "
            "set cluster.nodes=1 and cluster.gpus_per_node, or cluster=slurm"
        )
    refuse_crowd(cfg.cluster.gpus_per_node)
    make_logs(Path(cfg.run_dir))  # before minutes of preparation
    code = ensure_corpus(cfg, arguments)
    if code:
        return code
    cluster = cfg.cluster
    job = job_for(
        Path(cfg.run_dir),
        cluster.gpus_per_node,
        arguments,
        max_restarts=cluster.max_restarts,
        threads=cfg.compute.threads,
    )
    ended = supervise(job)
    if ended.code == 0:
        print(f"corral: done; {next_step(cfg)}", flush=True)
    if ended.code not in SAID_BY_ITSELF:
        print(f"corral: ended with {ended.code}: {ended.reason}; {ended.hint}", file=sys.stderr, flush=True)
    elif ended.code:
        print(f"corral: ended with {ended.code}; more in {job.logs}", file=sys.stderr, flush=True)
    return ended.code


def refuse_crowd(processes: int) -> None:
    """Raise ConfigError for more processes than this machine can hold: one per GPU, or a few per CPU core."""
    if processes == 1:
        return
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(listed_gpus() or []) if chosen is None else len([each for each in chosen.split(",") if each.strip()])
    cores = os.cpu_count() or 1
    if 0 < gpus < processes:
        raise ConfigError(
            f"cluster.gpus_per_node: {processes} processes, and this machine has {gpus} GPUs, of which each takes one; "
            f"set cluster.gpus_per_node={gpus}, or cluster=slurm for other machines"
        )
    if processes > PER_CORE * cores:
        raise ConfigError(
            f"cluster.gpus_per_node: {processes} processes, and this machine has {cores} CPU cores and no GPU; set "
            f"cluster.gpus_per_node={cores}, or cluster=slurm for other machines"
        )


def next_step(cfg: RunConfig) -> str:
    """The commands that a user types after a run, and what they show."""
    run_dir = shlex.quote(cfg.run_dir)
    exported = shlex.quote(str(Path(cfg.run_dir) / "export"))
    return (
        f"next: python -m train.export run_dir={run_dir} && python -m train.chat model={exported} (talk to it), "
        f"python -m train.report run_dir={run_dir} (its plots)"
    )


def sweep(arguments: Sequence[str], *, dry: bool = False) -> int:
    """Run all combinations one after another (on SLURM: as one job array); returns the first code that is not 0."""
    every = combinations(arguments)
    runs = [run_of(each) for each in every]
    if all(cfg.cluster.kind == "slurm" for cfg, _ in runs) and start_array(runs, dry=dry):
        return 0
    first = 0
    for number, (each, (_, words)) in enumerate(zip(every, runs, strict=True), 1):
        print(f"corral: {number} of {len(every)}: {' '.join(each.swept)}", flush=True)
        try:
            code = start(words, dry=dry)
        except CorralError as error:
            print(describe(error), file=sys.stderr, flush=True)
            code = error.code
        if code in (75, 130):  # asked to stop: not only this one
            return code
        first = first or code
    return first


def run_of(each: Combination) -> tuple[RunConfig, list[str]]:
    """The config of one run of a sweep, and its command line. Raises ConfigError."""
    cfg, _ = config_from_argv(each.arguments, command="launch")
    run_dir = f"{cfg.run_dir}-{each.digest}"
    return replace(cfg, run_dir=run_dir), [*each.arguments, override("run_dir", run_dir)]


def start_array(runs: Sequence[array.Run], *, dry: bool) -> bool:
    """Submit a sweep as one array; False if its runs need jobs of several sizes."""
    for cfg, _ in runs:
        refuse_changes(cfg)
    if dry:
        chain = array.chain_of(runs, array.folder_of(runs))
        print(shown(chain) if chain else "corral: the runs need jobs of several sizes: one job for each")
        return chain is not None
    sent = array.submit_array(runs)
    if sent is None:
        return False
    print(f"corral: submitted as job {sent['job']}, an array of {len(runs)} runs; logs: {sent['log']}")
    for task, (cfg, _) in enumerate(runs):
        print(f"corral: task {task}: {cfg.run_dir}")
    if not runs[0][0].evaluation.at_end:
        print("corral: the runs of an array are evaluated by python -m train.evaluate run_dir=..., not by jobs")
    return True


def show_plan(arguments: Sequence[str]) -> int:
    options, rest = plan_options(arguments)
    if "--sweep" in options:
        return show_sweep(rest, options)
    cfg, _ = config_from_argv(rest, command="launch plan")
    answer = planned(cfg)
    trace = traced(rest, answer.found.supervised) if "--trace" in options else None
    if "--json" in options:
        print(to_json(answer, trace))
        return 0
    print(table(answer))
    if trace:
        own = answer.found.chosen
        closed = own.activations + own.logits + own.passing
        print(f"traced: {size(trace['peak'])} beside states and buffers; the formulas say {size(closed)}")
    return 0


def show_sweep(arguments: Sequence[str], options: Mapping[str, str]) -> int:
    points = plan_sweep.sweep(arguments, options["--sweep"])
    key = options["--sweep"].partition("=")[0]
    if "--plot" in options:
        plan_plot.plot(key, points, Path(options["--plot"]))
    print(plan_sweep.to_json(points) if "--json" in options else "\n".join(plan_sweep.lines(key, points)))
    return 0


def plan_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """plan's own options with their values, and the rest of its command line."""
    options: dict[str, str] = {}
    rest, words = [], iter(arguments)
    for word in words:
        if word in ("--json", "--trace"):
            options[word] = ""
        elif word in ("--sweep", "--plot"):
            options[word] = next(words, "")
        else:
            rest.append(word)
    return options, rest


def show_run_dir(arguments: Sequence[str]) -> int:
    cfg, _ = config_from_argv(arguments, command="launch where")
    print(Path(cfg.run_dir).resolve())
    return 0


COMMANDS = {
    "plan": show_plan,
    "where": show_run_dir,
    "preflight": preflight,
    "status": show_status,
    "logs": show_logs,
    "cancel": ask_to_stop,
    "begin": begin,
    "settle": finish,
}

if __name__ == "__main__":
    leave_with_code(main)
