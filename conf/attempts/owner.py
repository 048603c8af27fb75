"""Which attempt may write into a run's folder: SLURM starts a job again while a node that it has lost trains on.

The new attempt puts its number into the file ``owner``, and then waits for the lock. The ranks of the attempt before
find it where they look for the stop file, at every step, and leave; until they do, they publish nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from conf.durable import write_whole
from conf.foreign.json_file import object_if_there

LEAVES_S = 60.0
"""An attempt that lost its run leaves within one step; after this time the watchdog ends its ranks."""


@dataclass(frozen=True)
class Owner:
    attempt: int
    job: str
    """SLURM's id; empty without SLURM. It stays the same when the job is requeued."""
    host: str
    """Where the attempt began."""
    since: str

    def __str__(self) -> str:
        return f"attempt {self.attempt}{f' of job {self.job}' if self.job else ''} on {self.host}, since {self.since}"


def owner_of(run_dir: Path) -> Owner | None:
    """The owner of a run; None if no attempt has owned it yet, or the file is no such record."""
    found = object_if_there(run_dir / "owner")
    if not isinstance(found.get("attempt"), int) or not {"job", "host", "since"} <= found.keys():
        return None
    return Owner(found["attempt"], *(str(found[key]) for key in ("job", "host", "since")))


def own(run_dir: Path, attempt: int) -> None:
    """Make ``attempt`` the owner. Raises OSError."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = Owner(attempt, os.environ.get("SLURM_JOB_ID", ""), socket.gethostname(), since)
    write_whole(run_dir / "owner", json.dumps(asdict(owner)) + "\n")


def take_over(run_dir: Path, attempt: int) -> bool:
    """Own a run whose lock the same SLURM job may still hold on a node that SLURM has lost; False if it is not ours.

    Whether another job may have the run, its lock says. Raises OSError.
    """
    before = owner_of(run_dir)
    ours = before is not None and before.job != "" and before.job == os.environ.get("SLURM_JOB_ID")
    if ours:
        own(run_dir, attempt)
    return ours


def successor(run_dir: Path, attempt: int) -> Owner | None:
    """The later attempt that owns the run instead of ``attempt``."""
    owner = owner_of(run_dir)
    return owner if owner is not None and owner.attempt > attempt else None
