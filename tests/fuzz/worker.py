"""A forked process that runs cases one after another and says how each ended; who forked it watches it.

It reports lines of JSON: one as a case begins, one when it has ended. A case that takes too long or too much is killed
with its process, so its beginning is the last that is heard of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from conf.errors import CorralError
from conf.safety.streams import guarded
from tests.fuzz import judge
from tests.fuzz.target import Case, Target

CASES = 400
"""After which a process makes room for a fresh one."""
FAILED = 3
"""Exit code of a process in which the fuzzer itself failed."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ended:
    number: int
    refused: bool
    flaw: str
    """What is wrong; empty text if nothing is."""
    seconds: float
    peak: int
    """Bytes that the process had at most beside those it had before."""
    trace: str = ""
    sentence: str = ""
    """With which the input was refused."""


class Worker:
    """Runs the cases of ``target`` from ``first`` on, on copies of ``whole`` in ``work``, until it is stopped."""

    def __init__(self, target: Target, seed: int, whole: Path, work: Path, first: int, count: int = CASES) -> None:
        self.target, self.seed, self.work = target, seed, work
        self.next, self.said = first, ""
        self.began: _Start | None = None
        """Of the case that runs now."""
        self.highest = 0
        """Bytes that the case added, children included, as far as was seen."""
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            _run(target, seed, whole, work, range(first, first + count), os.fdopen(write, "wb", buffering=0))
        os.close(write)
        self.pipe = os.fdopen(read, "rb")
        os.set_blocking(read, False)
        self._rest = b""

    def heard(self) -> tuple[list[Ended], bool]:
        """(cases that have ended since the last call, whether the process goes on)."""
        ended: list[Ended] = []
        while (part := self.pipe.read(1 << 16)) is not None:
            if not part:
                return ended, False
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in map(json.loads, lines):
                if "said" in line:
                    self.next, self.said, self.began = line["number"], line["said"], _Start(self.pid)
                    self.highest = 0
                    continue
                found = Ended(**line)
                # Both are at most too long: of ended children, only who looked meanwhile knows how long they waited.
                seconds = min(found.seconds, self.began.seconds()) if self.began else found.seconds
                flaw = found.flaw or (f"it takes {seconds:.1f} s" if seconds > judge.SECONDS else "")
                peak = max(found.peak, self.highest)
                ended.append(replace(found, seconds=seconds, flaw=flaw, peak=peak))
                self.next, self.began = found.number + 1, None
        return ended, True

    def too_much(self) -> Ended | None:
        """The case that runs now, if it takes more than it may."""
        if self.began is None:
            return None
        self.highest = max(self.highest, _tree_bytes(self.pid) - self.began.bytes)
        seconds = self.began.seconds()
        if self.highest > judge.MEMORY:
            return Ended(self.next, False, f"it takes {self.highest >> 20} MiB of memory", seconds, self.highest)
        if seconds > judge.SECONDS:
            return Ended(self.next, False, f"it takes more than {judge.SECONDS:g} s", seconds, self.highest)
        return None

    def end(self) -> int:
        """Kill the process if it still runs; how it ended: its exit code, or minus the signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.pipe.close()
        return os.waitstatus_to_exitcode(status)


class _Start:
    """When a case began, and what its process had then."""

    def __init__(self, pid: int) -> None:
        self._pid, self._clock = pid, time.monotonic()
        self._before = _waits(pid)
        self._seen = dict(self._before)
        self.bytes = _tree_bytes(pid)

    def seconds(self) -> float:
        """Since then, without those in which the process or one below it could have run and had no processor."""
        self._seen |= _waits(self._pid)
        waited = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._seen.items())
        return time.monotonic() - self._clock - waited


def _tree(pid: int) -> Iterator[int]:
    """``pid`` and all processes below it."""
    pids = [pid]
    while pids:
        yield (one := pids.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(each) for each in (task / "children").read_text().split()]


def _waits(pid: int) -> dict[int, float]:
    """Seconds for which ``pid`` and each below it have waited for a processor."""
    found = {}
    for one in _tree(pid):
        with contextlib.suppress(OSError, IndexError):
            found[one] = int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) / 1e9
    return found


def _tree_bytes(pid: int) -> int:
    """Resident memory of ``pid`` and all below it, without what they share with the process that forked them."""
    total = 0
    for one in _tree(pid):
        with contextlib.suppress(OSError, ValueError):
            _, resident, shared, *_ = map(int, Path(f"/proc/{one}/statm").read_text().split())
            total += (resident - shared) * PAGE
    return total


def _run(target: Target, seed: int, whole: Path, work: Path, numbers: range, pipe: BinaryIO) -> None:
    """The process itself. It does not return."""
    printed = os.open(work.with_suffix(".printed"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(printed, number)
    sys.stdout, sys.stderr = (_text(number) for number in (1, 2))
    try:
        for number in numbers:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(whole, work, symlinks=True)
            case = Case(target.name, seed, number)
            _tell(pipe, number=number, said=target.damage(case.chance, work))
            ended = _one(target, work, number, printed)
            _tell(pipe, **asdict(ended))
            if ended.flaw or ended.seconds > judge.SECONDS:  # its folder is looked at, so no other case may use it
                break
    except BaseException:  # of the fuzzer itself: who watches sees the end of the pipe, and this
        os.write(2, traceback.format_exc().encode())
        os._exit(FAILED)
    os._exit(0)


def _text(number: int) -> TextIO:
    return os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _one(target: Target, work: Path, number: int, printed: int) -> Ended:
    os.ftruncate(printed, 0)
    os.lseek(printed, 0, os.SEEK_SET)
    before = _reset_peak()
    start = _Start(os.getpid())
    flaw, refused, trace, sentence = "", False, "", ""
    try:
        with guarded():
            target.read(work)
    except BaseException as error:  # whatever is no sentence of ours is what is looked for
        flaw, refused, sentence = judge.of_error(error), isinstance(error, CorralError), str(error)[:1000]
        trace = "".join(traceback.format_exception(error)) if flaw else ""
    seconds, peak = start.seconds(), _peak() - before
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    text = os.pread(printed, 1 << 20, 0).decode("utf-8", "replace")
    flaw = flaw or judge.of_output(text)
    if not flaw and peak > judge.MEMORY:
        flaw = f"it takes {peak >> 20} MiB of memory"
    return Ended(number, refused, flaw, seconds, peak, trace[-8000:], sentence)


def _reset_peak() -> int:
    """The resident bytes of this process, from which its peak begins anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def _tell(pipe: BinaryIO, **what: Any) -> None:
    content = json.dumps(what).encode() + b"\n"
    while content:
        content = content[pipe.write(content) :]
