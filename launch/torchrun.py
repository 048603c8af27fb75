"""Supervises runs on one machine: starts torchrun, reads how it ended, and starts it again if that can help.

    launcher > guard > torchrun > one worker per rank

The first SIGTERM, SIGINT, SIGHUP or SIGUSR1 touches the stop file and waits for the run to checkpoint and leave; the
second ends torchrun, which gives its workers 30 s; the third kills. Nothing below survives the launcher's own death.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from conf.command import TOLD
from conf.durable import opened
from conf.exits import LAUNCHED, ExitRecord, begin_attempt
from conf.safety.arguments import for_children
from conf.safety.secrets import redact_text
from conf.safety.texts import for_terminal
from launch.guard import guarded
from launch.restarts import newest_checkpoint, settle
from launch.run_dir import claimed, note_launch
from launch.terminal import PlainLog, open_channel, relay

ROOT = Path(__file__).resolve().parent.parent
"""The repository: children import the packages from here, whatever lies in the working folder."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Job:
    run_dir: Path
    world: int
    """Processes."""
    command: Sequence[str]
    """torchrun and its arguments; the same for every attempt."""
    max_restarts: int = 3
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""

    @property
    def stop_file(self) -> Path:
        return self.run_dir / "stop"

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"


def torchrun_command(processes: int, arguments: Sequence[str]) -> list[str]:
    """torchrun on this machine. ``--standalone`` lets the system choose a free port, anew at every start."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return [
        *torchrun,
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
        "-m",
        "launch.worker",
        *for_children(arguments),
    ]


def child_environment(processes: int, threads: int = 0) -> dict[str, str]:
    """The environment of child processes. ``threads`` per process; 0: cores / processes. Variables of the user stay."""
    search = os.environ.get("PYTHONPATH")
    default_threads = threads or max(1, (os.cpu_count() or 1) // processes)
    return {
        "PYTHONSAFEPATH": "1",
        TOLD: "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{search}" if search else str(ROOT),
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(default_threads)),
    }


class StopRequests:
    """Counts the signals that ask the launcher to stop, and forwards them. ``watching`` restores the handlers."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self.count = 0
        self.guard: subprocess.Popen[bytes] | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            opened(self.stop_file, "ab").close()
            _say(f"{signal.Signals(number).name}: stopping after a checkpoint; send it again to stop without one")
        elif self.guard is not None and self.guard.poll() is None:
            self.guard.send_signal(signal.SIGTERM if self.count == 2 else signal.SIGHUP)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        ignored = [each for each in STOP_SIGNALS if signal.getsignal(each) is signal.SIG_IGN]  # nohup
        before = {each: signal.signal(each, self.on_signal) for each in STOP_SIGNALS if each not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def supervise(job: Job, *, screen: BinaryIO | None = None) -> ExitRecord:
    """Run ``job`` until it finishes, cannot be restarted, makes no progress, or is asked to stop; returns exit.json.

    ``screen``: where rank 0's output goes, by default this process's stdout. Raises PermissionDenied or CannotCreate
    if run_dir cannot be written or another launcher has it.
    """
    with claimed(job.run_dir) as logs:
        note_launch(logs, ROOT)
        requests = StopRequests(job.stop_file)
        with requests.watching():
            return _supervise(job, requests, screen or sys.stdout.buffer)


def _supervise(job: Job, requests: StopRequests, screen: BinaryIO) -> ExitRecord:
    first = attempt = begin_attempt(job.run_dir)
    while True:
        _run_attempt(job, attempt, requests, screen)
        outcome = settle(job.run_dir, attempt=attempt, first=first, world=job.world, max_restarts=job.max_restarts)
        if requests.count or not outcome.again:
            return outcome.record
        record, checkpoint = outcome.record, newest_checkpoint(job.run_dir)
        _say(
            f"attempt {attempt} ended with {record.code} at step {record.step}: {record.reason}; "
            f"starting again from {f'checkpoint step {checkpoint}' if checkpoint else 'the beginning'}"
        )
        attempt = begin_attempt(job.run_dir)


def _run_attempt(job: Job, attempt: int, requests: StopRequests, screen: BinaryIO) -> None:
    """One torchrun, from start to the end of its last descendant."""
    job.stop_file.unlink(missing_ok=True)  # left by an attempt that was killed
    if requests.count:
        opened(job.stop_file, "ab").close()
    own = {LAUNCHED: str(attempt), "CORRAL_STOP_FILE": str(job.stop_file), "CORRAL_LOG_DIR": str(job.logs)}
    reader, writer = open_channel()
    with PlainLog(job.logs / "rank-0.log") as log, opened(job.logs / "torchrun.log", "ab") as errors:
        log.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        requests.guard = subprocess.Popen(
            guarded(job.command),
            env={**os.environ, **job.environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=errors,
            start_new_session=True,
        )
        os.close(writer)
        relay(reader, screen, log)
        os.close(reader)
        requests.guard.wait()
    job.stop_file.unlink(missing_ok=True)


def job_for(run_dir: Path, processes: int, arguments: Sequence[str], *, max_restarts: int, threads: int = 0) -> Job:
    """The job of ``python -m launch``: training on ``processes`` ranks with the overrides ``arguments``."""
    return Job(
        run_dir=run_dir.absolute(),  # its links are judged, so they stay
        world=processes,
        command=torchrun_command(processes, arguments),
        max_restarts=max_restarts,
        environment=child_environment(processes, threads),
    )


def _say(text: str) -> None:
    # Not print: this is called from signal handlers too.
    os.write(2, f"corral: {for_terminal(redact_text(text))}\n".encode())
