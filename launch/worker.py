"""torchrun starts this on every rank: it redirects the output of the rank, then becomes ``python -m train``.

With CORRAL_LOG_DIR set, rank 0 writes output and errors to its stdout, and every other rank appends to rank-N.log in
that folder. A rank dies with its torchrun, so no rank keeps a device after a SIGKILL.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from launch.guard import die_with_parent


def sort_output(rank: int, log_dir: str) -> None:
    """Redirect file descriptors 1 and 2, which libraries in C also write to, to the output of this rank."""
    target = 1
    if rank:
        target = os.open(f"{log_dir}/rank-{rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.dup2(target, 1)
    os.dup2(target, 2)


def torchrun() -> int:
    """The process that started this one, if that is a torchrun; 0 if it has ended and another took its place."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return 0
    return parent if b"torch" in command else 0


def main() -> None:
    die_with_parent(torchrun())
    log_dir = os.environ.get("CORRAL_LOG_DIR")
    if log_dir:
        sort_output(int(os.environ.get("RANK", "0")), log_dir)
    runpy.run_module("train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
