"""Ends a whole tree of processes together: when the guard or its parent ends, every process below the guard ends too.

``python -m launch.guard PARENT_PID COMMAND...`` runs COMMAND and exits with its status. torchrun puts its workers
into sessions of their own, so killing torchrun, or the launcher above it, would leave them running with a port and a
lock. The guard is a subreaper: orphans below it become its children, so it can find and end every one of them.
Linux only (prctl, /proc).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LEFTOVER_SECONDS = 5.0
"""Helpers of a finished run (such as an uploader) have this time to end by themselves after SIGTERM."""


def guarded(command: Sequence[str]) -> list[str]:
    """``command`` under a guard that watches this process."""
    return [sys.executable, "-m", "launch.guard", str(os.getpid()), *command]


def prctl(option: int, value: int) -> None:
    """Linux's prctl for this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it, of process ``parent``, ends.

    One that ended before the kernel knew would never be missed: then this process ends now.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """The ids of the processes below ``root``, parents first. A process may end while they are listed."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found[1:]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end_descendants(grace_seconds: float) -> None:
    """Send SIGTERM to every process below this one, and SIGKILL to those that still run after ``grace_seconds``."""
    if grace_seconds:
        send(descendants(os.getpid()), signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while _reap() and (left := descendants(os.getpid())):
        if time.monotonic() >= deadline:
            send(left, signal.SIGKILL)
        time.sleep(0.02)


def _reap() -> bool:
    """Collect ended children; False if there are no children at all."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _wait_for(pid: int) -> int:
    """Exit status of ``pid`` (128 + signal if killed), collecting adopted orphans on the way."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(argv: Sequence[str]) -> int:
    parent, command = int(argv[0]), argv[1:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def parent_died(number: int, frame: FrameType | None) -> None:
        end_descendants(0.0)
        os._exit(128 + number)

    signal.signal(signal.SIGHUP, parent_died)
    prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:  # it died before the line above
        return 128 + signal.SIGHUP
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid()))

    def forward(number: int, frame: FrameType | None) -> None:
        send([child.pid], signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = child.returncode = _wait_for(child.pid)
    end_descendants(LEFTOVER_SECONDS)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
