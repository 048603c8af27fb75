"""Files and folders that are whole or not there, locks between processes, and hashes of content.

``write_whole`` and ``writing_whole`` are for what is only read: nobody sees a part. ``commit`` and ``replacing`` also
survive a power cut, which costs a flush to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import xxhash

from conf.safety.secrets import redact

FLAGS = {
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR,
}


def xxh3_of(path: Path) -> str:
    """xxh3_128 of a file's bytes, as hex. Raises OSError."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace ``path`` at once: a reader sees the old or the new file, never a part. Raises OSError.

    Text is written as UTF-8. Several processes may write the same path: the last one stays.
    """
    temporary = beside(path)
    try:
        with opened(temporary, "xb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def commit(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is never seen half-written, and survives a power cut once this returns."""
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path``, as ``commit`` writes it, when the block ends without an error.

    For one process at a time: the temporary file has one name, so that what a killed process left is written over.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with opened(temporary, "xb") as stream:
        yield stream
        flushed(stream)
    publish(temporary, path)


def flushed(stream: BinaryIO) -> None:
    """Return when what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def publish(temporary: Path, path: Path) -> None:
    """Rename, then flush the folder entry."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def making_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that becomes ``folder`` when the block ends without an error, and is deleted otherwise.

    ``folder`` is not there yet, and one process at a time makes it: the temporary folder has one name, so that what a
    killed process left is taken away.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces ``folder`` when the block ends without an error, and is deleted otherwise.

    The old folder is deleted only when the new one is in its place.
    """
    temporary, old = beside(folder), beside(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody knows before."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")


def opened(path: Path, mode: Literal["xb", "ab", "r+b"], buffering: int = -1) -> BinaryIO:
    """The file ``path``, and never what a link of that name leads to. Raises OSError (ELOOP for a link).

    xb: a new file; ab: at the end of one that may be new; r+b: one that is there.
    """
    return os.fdopen(_descriptor(path, FLAGS[mode]), mode, buffering)


def _descriptor(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON object at the end of ``path``, without secrets, on a line of its own where a crash cut the last one.

    Raises OSError.
    """
    line = (json.dumps(redact(content)) + "\n").encode()
    with os.fdopen(_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b") as stream:
        if size := stream.tell():
            stream.seek(size - 1)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)


class LockHeld(Exception):
    """Another process holds the lock. ``holder``: what it wrote about itself, or empty text."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def take_lock(path: Path, holder: str = "") -> TextIO:
    """Take the lock ``path`` without waiting; it is held until the returned file is closed or the process ends.

    ``holder`` is written into the file and says to others who has the lock. Raises LockHeld, and OSError if the file
    cannot be made. A file system without locks costs a warning.
    """
    lock = os.fdopen(_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+", encoding="utf-8")
    try:
        _flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        with lock:
            raise LockHeld(lock.read().strip()) from None
    lock.truncate(0)
    lock.write(holder)
    lock.flush()
    return lock


def wait_for_lock(path: Path) -> TextIO:
    """As ``take_lock``, but waits until the other process is done. Raises OSError."""
    lock = os.fdopen(_descriptor(path, FLAGS["ab"]), "a", encoding="utf-8")
    _flock(lock, fcntl.LOCK_EX)
    return lock


NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What file systems say that know no locks: Lustre without the mount option flock, some NFS."""


def _flock(lock: TextIO, operation: int) -> None:
    try:
        fcntl.flock(lock, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(
            f"corral: warning: the file system of {lock.name} knows no locks ({error.strerror}), so two processes that "
            "write there at once are not noticed; start one at a time",
            file=sys.stderr,
            flush=True,
        )
