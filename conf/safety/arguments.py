"""Command lines of child processes. Every user of a machine reads those, and SLURM shows them to the whole cluster.

A command line with a secret is therefore handed over as one word, ``@FILE``. On this machine the file is memory of the
process that starts the others, and goes with it; a job of SLURM, which runs later and elsewhere, gets a file that its
user alone can read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from conf.safety.secrets import holds_secret

JOB, ATTEMPT = ".arguments-of-job-", ".arguments-of-attempt-"
"""Names of files with arguments: a job keeps its own until it has ended, and is started again with it."""
_read: list[Path] = []
"""Files that this process has got arguments from."""


def for_children(words: Sequence[str]) -> list[str]:
    """``words`` for processes that this one starts, or becomes, and that end with it."""
    if not any(map(holds_secret, words)):
        return list(words)
    memory = os.memfd_create("corral-arguments")
    os.set_inheritable(memory, True)  # launch.node becomes torchrun
    os.write(memory, _joined(words))
    return [f"@/proc/{os.getpid()}/fd/{memory}"]


def for_job(words: Sequence[str], folder: Path, *, kind: str = JOB) -> list[str]:
    """``words`` for a job that runs later, or one attempt of it (``kind``); a file in ``folder`` holds them if one has
    a secret. Raises OSError."""
    if not any(map(holds_secret, words)):
        return list(words)
    path = folder.absolute() / f"{kind}{secrets.token_hex(8)}"
    _write(path, words)
    return [f"@{path}"]


def for_task(words: Sequence[str], folder: Path, task: int) -> None:
    """``words`` for one task of a job array, which finds its file in ``folder`` by its number. Raises OSError."""
    _write(folder.absolute() / f"{JOB}{task}", words, again=True)


def spelt_out(words: Sequence[str]) -> list[str]:
    """``words`` with what the files among them hold. Raises OSError for one that cannot be read."""
    return [
        inner for word in words for inner in (spelt_out(_content(Path(word[1:]))) if word.startswith("@") else [word])
    ]


def came_from_file() -> bool:
    """Whether this process has got its arguments from a file of a job."""
    return any(path.name.startswith((JOB, ATTEMPT)) for path in _read)


def forget(*kinds: str) -> None:
    """Delete files that this process has got arguments from: what they were for has ended."""
    for path in _read:
        if path.name.startswith(kinds):
            path.unlink(missing_ok=True)


def _write(path: Path, words: Sequence[str], *, again: bool = False) -> None:
    """``again``: in place of a file of an earlier submission."""
    if again:
        path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(_joined(words))


def _content(path: Path) -> list[str]:
    content = path.read_bytes()
    _read.append(path)
    return [os.fsdecode(word) for word in content.split(b"\0")[:-1]]


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)
