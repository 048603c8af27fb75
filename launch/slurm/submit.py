"""Submits a run to SLURM: preparation if its corpus is absent, training, and evaluation if training does not evaluate.

A job that another waits for and that fails takes the other with it: nothing trains on a corpus that is not there.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import Unavailable
from conf.safety.arguments import for_job
from conf.safety.secrets import redact_text
from conf.schema import RunConfig
from launch.plan.limits import judge, lead_of, limit_seconds
from launch.plan.table import plan_if_known
from launch.prepare import is_prepared
from launch.run_dir import make_logs
from launch.slurm.clients import ask
from launch.slurm.jobs import note_job
from launch.slurm.options import NodeShape, environment, gpu_nodes, of_evaluation, of_preparation, of_training
from launch.slurm.snapshot import snapshot
from launch.sweep import override
from launch.torchrun import ROOT


@dataclass(frozen=True)
class Step:
    """One job of a run."""

    what: str
    """prepare, train or evaluate."""
    options: Sequence[str]
    script: Path
    arguments: Sequence[str]
    variables: Mapping[str, str]
    """Of the environment that sbatch hands over."""

    def command(self, *more: str) -> list[str]:
        return ["sbatch", *more, *self.options, str(self.script), *self.arguments]


def submit(cfg: RunConfig, arguments: Sequence[str]) -> dict[str, str]:
    """Submit the jobs of a run with the overrides ``arguments`` as they are, or the file that holds them; their ids.

    Raises Unavailable without sbatch or controller, ConfigError with SLURM's own words if it refuses the request, or
    for a time limit that is too short, CannotCreate or PermissionDenied if the folder of the log, without which SLURM
    loses it, cannot be made.
    """
    need_sbatch()
    run_dir = Path(cfg.run_dir).absolute()
    logs = make_logs(run_dir)
    repository = snapshot(run_dir) if cfg.cluster.snapshot else ROOT
    chain = steps(cfg, for_job(arguments, logs), repository)
    sent = dict(zip((step.what for step in chain), send(chain), strict=True))
    for what, job in sent.items():
        note_job(logs, job, what)
    return sent


def send(chain: Sequence[Step]) -> list[str]:
    """Submit ``chain``, each job to start once those that it waits for have ended well; the ids of the jobs."""
    for step in chain:  # all of them, before one is sent; SLURM does not judge a job that waits
        ask(step.command("--test-only"), step.variables)
    sent: list[str] = []
    for number, step in enumerate(chain):
        options = ["--parsable", *_waiting([sent[each] for each in _before(chain, number)])]
        sent.append(ask(step.command(*options), step.variables).strip().partition(";")[0])
    return sent


def steps(cfg: RunConfig, arguments: Sequence[str], repository: Path = ROOT) -> list[Step]:
    """The jobs of a run, in their order."""
    nodes = gpu_nodes(cfg.cluster.partition)
    before = preparation(cfg, arguments, repository)
    train = training(cfg, arguments, nodes=nodes, repository=repository)
    return [
        *([before] if before else []),
        train,
        *([] if cfg.evaluation.at_end else [evaluation(cfg, nodes, repository)]),
    ]


def preparation(cfg: RunConfig, arguments: Sequence[str], repository: Path) -> Step | None:
    """The job that prepares the corpus, without GPUs; None if that is finished."""
    if is_prepared(cfg):
        return None
    options = [*_head(cfg, "-prepare"), *of_preparation(cfg.cluster, cfg.data.num_proc)]
    variables = environment(cfg.cluster, repository)
    return Step("prepare", options, repository / "slurm" / "data_prep.sh", arguments, variables)


def evaluation(cfg: RunConfig, nodes: Sequence[NodeShape], repository: Path) -> Step:
    """The job that evaluates the last checkpoint, with one process."""
    options = [*_head(cfg, "-evaluate"), *of_evaluation(cfg.cluster, nodes)]
    words = [override("run_dir", str(Path(cfg.run_dir).absolute()))]
    return Step("evaluate", options, repository / "slurm" / "evaluate.sh", words, environment(cfg.cluster, repository))


def training(cfg: RunConfig, arguments: Sequence[str], *, nodes: Sequence[NodeShape], repository: Path) -> Step:
    """The job that trains. Says what the plan thinks of its time limit; raises ConfigError if that is too short."""
    cluster, plan = cfg.cluster, plan_if_known(cfg)
    lead = lead_of(cfg, plan)
    if cluster.time is not None and (said := judge(plan, limit_seconds(cluster.time), lead)):
        print(said, file=sys.stderr, flush=True)
    variables = {**environment(cluster, repository), "CORRAL_SIGNAL_SECONDS": str(lead)}
    if cluster.min_nodes:
        variables["CORRAL_MIN_NODES"] = str(cluster.min_nodes)
    options = [*_head(cfg), *of_training(cluster, nodes, lead)]
    return Step("train", options, repository / "slurm" / "train.sh", arguments, variables)


def shown(chain: Sequence[Step]) -> str:
    """The command lines that ``send`` would give to SLURM, for a terminal."""
    lines = []
    for number, step in enumerate(chain):
        options = ["--parsable", *_waiting([f"JOB_{each + 1}" for each in _before(chain, number)])]
        names = [f"{name}={shlex.quote(value)}" for name, value in sorted(step.variables.items())]
        lines.append(" ".join([*names, shlex.join(step.command(*options))]))
    return redact_text("\n".join(lines))


def _before(chain: Sequence[Step], number: int) -> list[int]:
    """The jobs that one waits for: all of the kind before its own."""
    others = [step.what for step in chain[:number] if step.what != chain[number].what]
    return [each for each in range(number) if chain[each].what == others[-1]] if others else []


def _waiting(jobs: Sequence[str]) -> list[str]:
    return [f"--dependency=afterok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes"] if jobs else []


def _head(cfg: RunConfig, suffix: str = "") -> list[str]:
    return [f"--job-name={cfg.name}{suffix}", f"--output={Path(cfg.run_dir).absolute()}/logs/slurm-%j.log"]


def need_sbatch() -> None:
    """Raise Unavailable where SLURM's clients are not installed."""
    if shutil.which("sbatch") is None:
        raise Unavailable("cluster.kind=slurm: sbatch is not on PATH; run this on a login node, or set cluster=local")
