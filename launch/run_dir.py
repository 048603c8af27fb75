"""The folder of a run as the launcher needs it: made, proven writable, and supervised by one launcher at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from conf.errors import CannotCreate, PermissionDenied
from launch.provenance import provenance, record


def make_logs(run_dir: Path) -> Path:
    """``run_dir``/logs, made if absent. Raises PermissionDenied (77) or CannotCreate (73)."""
    logs = run_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "launch.lock").touch()
    except PermissionError as error:
        raise PermissionDenied(
            f"run_dir={run_dir}: no permission to write there ({error.filename}); set run_dir to a folder you may write"
        ) from None
    except OSError as error:
        raise CannotCreate(f"run_dir={run_dir}: cannot be created: {error.strerror}; set another run_dir") from None
    return logs


def note_launch(logs: Path, repository: Path) -> None:
    """One line in logs/launches.jsonl: what code, versions and machine this start comes from."""
    record(logs / "launches.jsonl", provenance(repository))


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[Path]:
    """The logs folder, while no other launcher supervises a run there. Raises CannotCreate naming the holder."""
    logs = make_logs(run_dir)
    with (logs / "launch.lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotCreate(
                f"run_dir={run_dir} is supervised by another launcher (process {lock.read().strip()}); "
                "wait for it, stop it, or set another run_dir or name"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield logs
