"""Composes a config, checks it, prepares its corpus where it is absent, and starts the run.

On this machine (cluster=local) it stays and supervises: torchrun is started again from the last good checkpoint when a
rank dies. With cluster=slurm it submits slurm/train.sh and leaves. `-m key=a,b` makes one run of every combination.

  python -m launch plan experiment=NAME [--json] [--trace] [--sweep nodes=1,8,64 [--plot FILE.png]]
                                                    memory, time and communication; starts nothing
  python -m launch where experiment=NAME            prints the run's folder
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.compose import config_from_argv
from conf.errors import ConfigError, CorralError, describe, leave_with_code
from conf.schema import RunConfig
from launch import plan_plot, plan_sweep
from launch.batch_job import begin, finish
from launch.plan import one_line, planned, size, table, to_json, traced
from launch.prepare import ensure_corpus
from launch.slurm import submit
from launch.sweep import combinations, override
from launch.torchrun import job_for, supervise

SAID_BY_ITSELF = (0, 65, 66, 69, 71, 73, 77, 78)
"""Codes whose sentence rank 0 has printed already."""


def main() -> int:
    argv = sys.argv[1:]
    word, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    if word:
        return COMMANDS[word](rest)
    if "-m" in rest or "--multirun" in rest:
        return sweep([each for each in rest if each not in ("-m", "--multirun")])
    return start(rest)


def start(arguments: Sequence[str]) -> int:
    """One run, from its command line to its exit code."""
    cfg, _ = config_from_argv(arguments, command="launch")
    print(one_line(cfg), flush=True)
    if cfg.cluster.kind == "slurm":
        job = submit(cfg, arguments)
        print(f"corral: submitted as job {job}; its log is {Path(cfg.run_dir) / 'logs' / f'slurm-{job}.log'}")
        return 0
    return start_here(cfg, arguments)


def start_here(cfg: RunConfig, arguments: Sequence[str]) -> int:
    if cfg.cluster.nodes != 1:
        raise ConfigError(
            f"cluster.nodes={cfg.cluster.nodes} with cluster.kind=local: this machine is one node; "
            "set cluster.nodes=1 and cluster.gpus_per_node, or cluster=slurm"
        )
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
    if ended.code not in SAID_BY_ITSELF:
        print(f"corral: ended with {ended.code}: {ended.reason}; {ended.hint}", file=sys.stderr, flush=True)
    elif ended.code:
        print(f"corral: ended with {ended.code}; more in {job.logs}", file=sys.stderr, flush=True)
    return ended.code


def sweep(arguments: Sequence[str]) -> int:
    """Every combination one after the other (on SLURM: submitted); the first code that is not 0."""
    every = combinations(arguments)
    first = 0
    for number, each in enumerate(every, 1):
        print(f"corral: {number} of {len(every)}: {' '.join(each.swept)}", flush=True)
        try:
            cfg, _ = config_from_argv(each.arguments, command="launch")
            code = start([*each.arguments, override("run_dir", f"{cfg.run_dir}-{each.digest}")])
        except CorralError as error:
            print(describe(error), file=sys.stderr, flush=True)
            code = error.code
        if code in (75, 130):  # asked to stop: not only this one
            return code
        first = first or code
    return first


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
    "begin": begin,
    "settle": finish,
}

if __name__ == "__main__":
    leave_with_code(main)
