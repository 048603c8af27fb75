"""The watchdog of a node: ``python -m train.watchdog BOARD RANKS PARENT``, started by local rank 0 (heartbeat.py).

It ends with its ranks. It ignores the signals that ask a run to stop, because it has to see how the ranks take them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from train.watchdog.board import Board
from train.watchdog.watching import Watchdog

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: Sequence[str]) -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    path, ranks, parent = Path(argv[0]), int(argv[1]), int(argv[2])
    try:
        Watchdog(Board(path, ranks), parent).watch()
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
