"""The SLURM jobs of a run: which there are, how they stand, how they are asked to stop."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conf.durable import append_line
from conf.errors import CorralError
from conf.foreign.json_file import object_in
from launch.slurm.clients import ask, job_record

LIST = "jobs.jsonl"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
LIVING = (*WAITING, "RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "RESIZING")


@dataclass(frozen=True)
class State:
    """How a job stands."""

    job: str
    what: str
    """prepare, train or evaluate."""
    name: str
    """SLURM's word, e.g. RUNNING; "" where SLURM has forgotten the job."""
    said: str
    """The rest, for a terminal."""

    @property
    def lives(self) -> bool:
        return self.name in LIVING


def note_job(logs: Path, job: str, what: str) -> None:
    """Write down in ``logs`` that a job belongs to the run, if that is not known yet. Raises OSError."""
    if job not in (known for known, _ in noted(logs)):
        append_line(logs / LIST, {"job": job, "what": what, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})


def noted(logs: Path) -> Iterator[tuple[str, str]]:
    """Ids of the run's jobs and what they do, oldest first. A line that a crash has cut is passed over."""
    with contextlib.suppress(FileNotFoundError):
        for line in (logs / LIST).read_bytes().splitlines():
            if {"job", "what"} <= (found := object_in(line)).keys():
                yield str(found["job"]), str(found["what"])


def states(run_dir: Path) -> list[State]:
    """Every job of the run as SLURM sees it, oldest first. Raises Unavailable if SLURM does not answer."""
    return [state_of(job, what) for job, what in noted(run_dir / "logs")]


def state_of(job: str, what: str) -> State:
    """From the controller or, for a job that it has forgotten, from the accounting where there is one."""
    try:
        found = job_record(job)
    except CorralError:
        if shutil.which("scontrol") is None:
            raise
        return _from_accounting(job, what)
    said = f"{found.get('RunTime', '?')} of {found.get('TimeLimit', '?')}"
    nodes, restarts = found.get("NodeList", "(null)"), found.get("Restarts", "0")
    said += f" on {nodes}" if nodes != "(null)" else ""
    said += f", restarted {restarts} times" if restarts != "0" else ""
    if found["JobState"] in WAITING:
        said = f"waits: {found.get('Reason', '?')}, expected to start {found.get('StartTime', '?')}"
    return State(job, what, found["JobState"], said)


def cancel(run_dir: Path) -> Iterator[str]:
    """Ask every living job of the run to stop; a sentence about each.

    A job that waits is cancelled. One that trains is asked to save a checkpoint and leave; a second request ends it.
    """
    for state in states(run_dir):
        if not state.lives:
            continue
        asked = next(iter((run_dir / "exit").glob("stop-*")), None)
        if state.what != "train" or state.name in WAITING or asked:
            ask(["scancel", state.job])
            yield f"job {state.job} ({state.what}) is cancelled"
        else:
            ask(["scancel", "--batch", "--signal=TERM", state.job])
            yield (
                f"job {state.job} ({state.what}) is asked to save a checkpoint and leave; the same command again ends "
                "it at once"
            )


def _from_accounting(job: str, what: str) -> State:
    if shutil.which("sacct"):
        with contextlib.suppress(CorralError):
            line = ask(["sacct", "-X", "-n", "-P", "-j", job, "--format=State,Elapsed,ExitCode"]).strip()
            if line:
                name, elapsed, code = line.splitlines()[-1].split("|")
                return State(job, what, name.split()[0], f"{elapsed}, exit code {code}")
    return State(job, what, "", "")
