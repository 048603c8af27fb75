"""What /proc says of processes: whether they live, in which state, what they wait for, and whose children they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

STATUS_LINES = ("Name", "State", "PPid", "TracerPid", "VmRSS", "VmSwap", "Threads", "SigPnd", "ShdPnd")
STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits for a device or file system and cannot be interrupted",
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
}


def born_and_state(pid: int) -> tuple[int, str]:
    """Start time in ticks since boot, and the state's letter (man 5 proc); (0, "") if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return int(fields[19]), fields[0]


def state_of(pid: int, born: int) -> str:
    """The state's letter of the process that was born then; "" if it has ended, also before its parent took note."""
    found, state = born_and_state(pid)
    return state if found == born and state not in "ZX" else ""


def children_of(parent: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The children of a process, each with the environment it was started with."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) != parent:
                    continue
                variables = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:  # ended meanwhile
                continue
            yield int(entry.name), dict(each.split("=", 1) for each in variables if "=" in each)


def described(pid: int) -> str:
    """Status, kernel stack and system call of a process, and a line for every thread. What cannot be read says why."""
    folder = Path(f"/proc/{pid}")
    status = [line for line in _text(folder / "status").splitlines() if line.split(":")[0] in STATUS_LINES]
    parts = [*status, *(f"{name}: {_text(folder / name)}" for name in ("wchan", "syscall", "stack"))]
    try:
        threads = sorted((folder / "task").iterdir(), key=lambda path: int(path.name))
    except OSError:
        threads = []
    for thread in threads:
        letter = _text(thread / "stat").rpartition(")")[2][1:2]
        parts.append(f"thread {thread.name} {_text(thread / 'comm')}: {letter} {_text(thread / 'wchan')}")
    return "\n".join(parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"
