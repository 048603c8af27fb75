"""The folder of a run: made, proven writable and locked before anything expensive happens; its append-only files."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from conf.attempts.owner import Owner, own, owner_of
from conf.disk.folders import own_run_dir, refuse_foreign_content
from conf.durable import LockHeld, append_line, take_lock
from conf.errors import HeldByAnother, Requeue, StorageError

WAIT_S = 150.0
"""How long a new attempt waits for one on a node that SLURM has lost, which leaves within a step or a minute."""


def claim(run_dir: Path, attempt: int) -> TextIO:
    """Create ``run_dir``, take its lock for this process's life and own the run; keep the returned file open.

    Raises PermissionDenied (77: also for what another user has put there) or CannotCreate (73) in one sentence; a held
    lock names its holder. An attempt that has taken the run over from an earlier one of its job waits for that one to
    leave; Requeue (75) if it does not.
    """
    owner = owner_of(run_dir)
    if owner is not None and owner.attempt > attempt:
        raise HeldByAnother(f"run_dir={run_dir}: {owner}, has taken this run over")
    try:
        with own_run_dir(run_dir):
            refuse_foreign_content(run_dir, "run_dir")
            return _locked(run_dir, attempt, owner)
    except LockHeld as held:
        raise HeldByAnother(_refusal(run_dir, held)) from None


def _locked(run_dir: Path, attempt: int, before: Owner | None) -> TextIO:
    """The lock of a run that ``before`` owned. Raises LockHeld, and Requeue after WAIT_S."""
    since, until = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic() + WAIT_S
    while True:
        try:
            lock = take_lock(run_dir / "lock", f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
            own(run_dir, attempt)
            return lock
        except LockHeld as held:
            if before is None or (before.attempt, before.job) != (attempt, os.environ.get("SLURM_JOB_ID")):
                raise
            if time.monotonic() > until:
                raise Requeue(f"{_refusal(run_dir, held)} (waited {WAIT_S:.0f} s)") from None
            time.sleep(1)


def _refusal(run_dir: Path, held: LockHeld) -> str:
    return (
        f"run_dir={run_dir} is in use by {held.holder or 'another process'}; "
        "wait for it, stop it, or set another run_dir or name"
    )


def append(path: Path, record: dict[str, Any]) -> None:
    """One JSON object as one line, of its own and without secrets. StorageError (74) if the disk refuses."""
    try:
        append_line(path, record)
    except OSError as error:
        raise StorageError(f"cannot append to {path}: {error.strerror}; free space or choose another run_dir") from None


def batch_digest(uids: Iterable[int]) -> str:
    """blake2b (16 bytes, hex) over the samples' 64-bit ids, little-endian and ascending, whatever their order."""
    numbers = uids if isinstance(uids, np.ndarray) else np.fromiter(uids, dtype=np.uint64)
    content = np.sort(numbers).astype("<u8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
