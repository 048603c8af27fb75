"""The Python commands that slurm/train.sh calls, so that the shell script contains no logic.

``begin``, before srun: creates the folders and prints the number of the attempt and the run's folder on two lines; on a
third, what the other commands get in place of arguments that hold a secret.
``settle attempt=N restarts=N world=N``, after srun: writes exit.json; exits with the code of the run, or 75 to requeue.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.attempts.owner import take_over
from conf.compose import config_from_argv
from conf.errors import ConfigError
from conf.exits import begin_attempt
from conf.safety.arguments import ATTEMPT, JOB, came_from_file, for_job, forget
from conf.schema import RunConfig
from launch.plan.limits import SCRIPT_LEAD, judge, limit_seconds
from launch.plan.table import plan_if_known
from launch.restarts import settle
from launch.run_dir import make_logs, note_launch, refuse_changes
from launch.slurm.clients import job_record
from launch.slurm.jobs import note_job
from launch.torchrun import ROOT

SETTLE_KEYS: Mapping[str, str] = {
    "attempt": "number of the attempt that has ended",
    "restarts": "how many times SLURM has restarted this job",
    "world": "processes of the run",
}


def begin(arguments: Sequence[str]) -> int:
    cfg, _ = config_from_argv(arguments, command="launch begin")
    refuse_changes(cfg)
    job = job_id()
    if said := judge_job(cfg, job):
        print(said, file=sys.stderr)
    run_dir = Path(cfg.run_dir).absolute()  # its links are judged, so they stay
    logs = make_logs(run_dir)
    if job:
        note_job(logs, job, "train")
    note_launch(logs, ROOT)
    attempt = begin_attempt(run_dir)
    take_over(run_dir, attempt)
    print(attempt)
    print(run_dir)
    if not came_from_file() and (words := for_job(arguments, logs, kind=ATTEMPT)) != [*arguments]:
        print(words[0])
    return 0


def job_id() -> str:
    """The id by which SLURM's clients know this job, a task of an array too; empty outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def judge_job(cfg: RunConfig, job: str) -> str:
    """``limits.judge`` for this job, whose lead is the launcher's, the user's or the script's."""
    if not job or (limit := job_record(job).get("TimeLimit")) is None:
        return ""
    lead = os.environ.get("CORRAL_SIGNAL_SECONDS") or cfg.cluster.signal_seconds or SCRIPT_LEAD
    return judge(plan_if_known(cfg), limit_seconds(limit), int(lead))


def finish(arguments: Sequence[str]) -> int:
    cfg, own = config_from_argv(arguments, command="launch settle", extra=SETTLE_KEYS)
    try:
        attempt, restarts, world = (int(own[key]) for key in SETTLE_KEYS)
    except (KeyError, ValueError):
        raise ConfigError("launch settle: attempt, restarts and world must be given as whole numbers") from None
    outcome = settle(
        Path(cfg.run_dir),
        attempt=attempt,
        first=max(0, attempt - restarts),
        world=world,
        max_restarts=int(os.environ.get("CORRAL_MAX_RESTARTS", cfg.cluster.max_restarts)),
    )
    forget(ATTEMPT, *([] if outcome.again else [JOB]))
    ended = outcome.record
    print(f"corral: attempt {attempt} ended with {ended.code} at step {ended.step}: {ended.reason}", file=sys.stderr)
    return 75 if outcome.again else ended.code
