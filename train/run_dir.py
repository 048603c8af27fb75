"""The folder of a run: made, proven writable and locked before anything expensive happens; its append-only files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from conf.errors import CannotCreate, PermissionDenied, StorageError


def claim(run_dir: Path) -> TextIO:
    """Create ``run_dir`` and take its lock for this process's life; keep the returned file open.

    Raises PermissionDenied (77) or CannotCreate (73) in one sentence; a held lock names its holder.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / "lock").open("a+")
    except PermissionError as error:
        raise PermissionDenied(
            f"run_dir={run_dir}: no permission to write there ({error.filename}); set run_dir to a folder you may write"
        ) from None
    except OSError as error:
        reason = "the file system is read-only" if error.errno == errno.EROFS else error.strerror
        raise CannotCreate(f"run_dir={run_dir}: cannot be created: {reason}; set run_dir to another folder") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise CannotCreate(
            f"run_dir={run_dir} is in use by {holder}; wait for it, stop it, or set another run_dir or name"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    lock.flush()
    return lock


def append(path: Path, record: dict[str, Any]) -> None:
    """One JSON object as one line. Raises StorageError (74) when the disk refuses."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise StorageError(f"cannot append to {path}: {error.strerror}; free space or choose another run_dir") from None


def batch_digest(uids: Iterable[int]) -> str:
    """blake2b (16 bytes, hex) over the samples' 64-bit ids, little-endian, in row order."""
    content = np.fromiter(uids, dtype=np.uint64).astype("<u8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
