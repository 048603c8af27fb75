"""What torchrun starts on every rank: sorts the rank's output, then becomes ``python -m train``.

With CORRAL_LOG_DIR set, rank 0 keeps the stream it was given (its errors joined to it) and every other rank appends
to rank-N.log there. A rank dies with its torchrun, so that none is left holding a device after a SIGKILL.
"""

from __future__ import annotations

import os
import runpy

from launch.guard import die_with_parent


def sort_output(rank: int, log_dir: str) -> None:
    """Point file descriptors 1 and 2, which libraries in C write to as well, to where this rank's output belongs."""
    target = 1
    if rank:
        target = os.open(f"{log_dir}/rank-{rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(target, 1)
    os.dup2(target, 2)


def main() -> None:
    die_with_parent()
    log_dir = os.environ.get("CORRAL_LOG_DIR")
    if log_dir:
        sort_output(int(os.environ.get("RANK", "0")), log_dir)
    runpy.run_module("train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
