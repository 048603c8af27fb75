"""A sweep as one job array: one task per run, as many at a time as ``cluster.at_once`` allows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conf.disk.folders import own_run_dir
from conf.safety.arguments import for_task
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from launch.run_dir import make_logs
from launch.slurm.jobs import note_job
from launch.slurm.options import gpu_nodes
from launch.slurm.snapshot import snapshot
from launch.slurm.submit import Step, need_sbatch, preparation, send, training
from launch.torchrun import ROOT

Run = tuple[RunConfig, Sequence[str]]
"""A run and its command line."""


def chain_of(runs: Sequence[Run], folder: Path, repository: Path = ROOT) -> list[Step] | None:
    """A preparation for every corpus that is absent, then the array; None for runs whose jobs differ in size.

    ``folder``: of the sweep, for the log and the tasks' arguments.
    """
    first, _ = runs[0]
    nodes = gpu_nodes(first.cluster.partition)
    made = [training(cfg, words, nodes=nodes, repository=repository) for cfg, words in runs]
    if any(_size(step) != _size(made[0]) for step in made):
        return None
    absent = {corpus_path(cfg): step for cfg, words in runs if (step := preparation(cfg, words, repository))}
    cap = f"%{first.cluster.at_once}" if first.cluster.at_once else ""
    options = [f"--job-name={first.name}", f"--output={folder}/slurm-%A_%a.log", f"--array=0-{len(runs) - 1}{cap}"]
    variables = {**made[0].variables, "CORRAL_SWEEP": str(folder)}
    return [*absent.values(), replace(made[0], options=[*options, *_size(made[0])], arguments=[], variables=variables)]


def submit_array(runs: Sequence[Run]) -> dict[str, str] | None:
    """Submit ``runs`` as one array; log pattern and id of its job, or None if their jobs differ in size.

    Raises what ``submit`` raises.
    """
    need_sbatch()
    folder = folder_of(runs)
    with own_run_dir(folder):
        repository = snapshot(folder) if runs[0][0].cluster.snapshot else ROOT
    chain = chain_of(runs, folder, repository)
    if chain is None:
        return None
    for task, (_, words) in enumerate(runs):
        for_task(words, folder, task)
    *before, job = send(chain)
    for task, (cfg, _) in enumerate(runs):
        logs = make_logs(Path(cfg.run_dir).absolute())
        for each in before:
            note_job(logs, each, "prepare")
        note_job(logs, f"{job}_{task}", "train")
    return {"job": job, "log": f"{folder}/slurm-{job}_TASK.log"}


def folder_of(runs: Sequence[Run]) -> Path:
    """The folder of a sweep: beside that of its first run, and another for another set of runs."""
    names = [str(Path(cfg.run_dir).absolute()) for cfg, _ in runs]
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=4).hexdigest()
    return Path(f"{names[0]}-sweep-{digest}")


def _size(step: Step) -> list[str]:
    """Options without the run's own name and log."""
    return [option for option in step.options if not option.startswith(("--job-name=", "--output="))]
