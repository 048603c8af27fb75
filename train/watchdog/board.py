"""The memory that the ranks of a node share with their watchdog: a slot per rank, and room for its stacks.

It is a file in /dev/shm that loses its name as soon as every rank has opened it, so nothing stays behind, whoever is
killed. A slot is written by its rank alone, in whole 64-bit words, and read by the watchdog.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from enum import IntEnum
from pathlib import Path

from conf.durable import beside

SHARED_MEMORY = Path("/dev/shm")


class Phase(IntEnum):
    """What a rank does. Every phase has a limit of its own (limits.py)."""

    START = 0
    """Until the first step begins: imports, downloads, the process group, the model, the checkpoint."""
    FIRST_STEP = 1
    """A step after anything else than a step: kernels are chosen and compiled, another rank may still be writing."""
    STEP = 2
    COMPILATION = 3
    EVALUATION = 4
    CHECKPOINT = 5
    END = 6


class Place(IntEnum):
    """Where in a step a rank is."""

    ELSEWHERE = 0
    READING = 1
    COMPUTING = 2
    UPDATING = 3
    REPORTING = 4


class Word(IntEnum):
    """The words of a slot."""

    PID = 0
    """0: this rank has not come yet. Written last."""
    BORN = 1
    """Start time of the process, in the kernel's ticks: a process id alone may be used again."""
    RANK = 2
    ATTEMPT = 3
    """Found out by the first rank of the node alone, before the others come."""
    MINIMUM = 4
    """``watchdog.seconds``."""
    BEATS = 5
    """Grows with every sign of life."""
    POSITION = 6
    """Grows with everything that all ranks do in the same order: the smaller one is behind."""
    PHASE = 7
    PLACE = 8
    STEP = 9
    """Last completed optimizer step."""
    CODE = 10
    """1 + exit code, once the rank has said how it ended; 0 before."""
    TIMED = 11
    """Steps timed so far; the last ``TIMES`` of them are kept."""


FIRST_TIME, TIMES = 16, 256
"""Where the times of the last steps stand, in microseconds, and how many."""
PATH, SLOT = 4096, 8192
"""Bytes: where the path of the run's folder begins in a slot, and the size of a slot."""
STACKS = 1 << 22
"""Bytes for the stacks of a rank. They take no memory before they are written."""


class Slot:
    """One rank's part of ``memory``."""

    def __init__(self, memory: memoryview) -> None:
        self.words = memory[:PATH].cast("q")
        self._path = memory[PATH:SLOT]

    @property
    def run_dir(self) -> Path:
        return Path(bytes(self._path).rstrip(b"\0").decode("utf-8", "surrogateescape"))

    @run_dir.setter
    def run_dir(self, path: Path) -> None:
        text = os.fsencode(path)[: SLOT - PATH]
        self._path[: len(text)] = text

    def add_time(self, seconds: float) -> None:
        """Keep the time of a step."""
        count = self.words[Word.TIMED]
        self.words[FIRST_TIME + count % TIMES] = int(seconds * 1e6)
        self.words[Word.TIMED] = count + 1

    @property
    def times(self) -> list[float]:
        """Seconds of the last steps, in no order."""
        count = min(self.words[Word.TIMED], TIMES)
        return [each / 1e6 for each in self.words[FIRST_TIME : FIRST_TIME + count]]


def private_slot() -> Slot:
    """A slot that nobody watches."""
    return Slot(memoryview(bytearray(SLOT)))


class Board:
    """The opened file. Raises OSError, FileNotFoundError if it is not there."""

    def __init__(self, path: Path, ranks: int) -> None:
        self.path, self.ranks = path, ranks
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if os.fstat(self.file).st_uid != os.geteuid():
            os.close(self.file)
            raise PermissionError(errno.EPERM, f"{path} belongs to another user")
        # Kept for the life of the process: the slots are views of it.
        memory = memoryview(mmap.mmap(self.file, ranks * SLOT))
        self.slots = [Slot(memory[rank * SLOT : (rank + 1) * SLOT]) for rank in range(ranks)]

    def stacks_of(self, local_rank: int) -> str:
        """What the rank has written of its stacks."""
        return os.pread(self.file, STACKS, self._place(local_rank)).rstrip(b"\0").decode("utf-8", "replace")

    def stack_file(self, local_rank: int) -> int:
        """A file descriptor of its own that writes into the room for the rank's stacks."""
        file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.lseek(file, self._place(local_rank), os.SEEK_SET)
        return file

    def _place(self, local_rank: int) -> int:
        return self.ranks * SLOT + local_rank * STACKS


def create(path: Path, ranks: int, attempt: int) -> None:
    """Make the file at once, with the number of the attempt: others see it whole or not at all. Raises OSError."""
    if not SHARED_MEMORY.is_dir():
        raise OSError(errno.ENOENT, "there is no /dev/shm")
    temporary = beside(path)
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # Not only sized: writing to a page that a full /dev/shm cannot give would kill the rank (SIGBUS).
        os.posix_fallocate(file, 0, ranks * SLOT)
        os.ftruncate(file, ranks * (SLOT + STACKS))
        for rank in range(ranks):
            os.pwrite(file, attempt.to_bytes(8, sys.byteorder), rank * SLOT + 8 * Word.ATTEMPT)
        temporary.rename(path)
    finally:
        os.close(file)
        temporary.unlink(missing_ok=True)
