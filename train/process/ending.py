"""How a rank ends: it writes the cause to a file, one sentence to stderr (once per node), and returns an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from conf.errors import (
    BadData,
    CannotCreate,
    ConfigError,
    CorralError,
    DeviceFailure,
    DistributedFailure,
    HeldByAnother,
    MissingInput,
    PermissionDenied,
    Requeue,
    describe,
)
from conf.exits import LAUNCHED, ExitRecord, merge_exits, release, write_rank_exit
from train.process.causes import named
from train.process.faultpoint import faultpoint
from train.ranks.group import Ranks
from train.state import TrainState

EVERY_RANK_SEES = (ConfigError, MissingInput, BadData, CannotCreate, PermissionDenied)


Close = Callable[[int], object]
"""Closes something of the run; takes the exit code."""


def leave(
    run: Callable[[TrainState, list[Close]], None], *, run_dir: Path, ranks: Ranks, attempt: Callable[[], int]
) -> int:
    """Call ``run``, record how it ended and return the exit code. A defect prints its traceback.

    The record comes first, because all that follows may wait for others: ``run`` adds what is to be closed afterwards
    to its list. A process group is closed by no failure: under NCCL that is collective and waits for the ranks that are
    gone. The process ends with ``end_process``, which asks nobody.
    """
    state, closing = TrainState(), list[Close]()
    try:
        run(state, closing)
        while closing:
            closing.pop()(0)
        faultpoint("end.record")
    except BaseException as error:
        failed, cause = time.time(), named(error)
        reason = str(cause) if cause else f"{type(error).__name__}: {error}"
        code = cause.code if cause else 130 if isinstance(error, KeyboardInterrupt) else 70
        _write(run_dir, ranks, ExitRecord(code, reason, state.step, _hint(code), attempt()), cause, failed)
        if cause is None:
            traceback.print_exc()
        elif ranks.local_rank == 0 or not isinstance(error, EVERY_RANK_SEES):
            print(describe(cause), file=sys.stderr, flush=True)
        while closing:
            with contextlib.suppress(Exception):
                closing.pop()(code)
        if ranks.rank and isinstance(error, EVERY_RANK_SEES):
            # torchrun and srun end the group as soon as one rank leaves: let rank 0 say the sentence of them all first.
            time.sleep(3)
        return code
    _write(run_dir, ranks, ExitRecord(0, "done", state.step, "", attempt()))
    return 0


def _write(
    run_dir: Path, ranks: Ranks, record: ExitRecord, cause: CorralError | None = None, failed: float | None = None
) -> None:
    """The rank's file, and exit.json by the first rank; a folder that cannot be written has been reported already.

    One that is refused because another run has the folder tells its launcher alone: without one, its number may be that
    of the other, which began at the same time, and so may its files.
    """
    refused = isinstance(cause, HeldByAnother)
    if not run_dir.is_dir() or (refused and LAUNCHED not in os.environ):
        return
    try:
        own = isinstance(cause, DeviceFailure)
        first = write_rank_exit(run_dir, ranks.rank, record, time_failed=failed, own=own)
        if refused:
            return
        if first:
            merge_exits(run_dir, record.attempt, ranks.rank)
        release(run_dir, record.attempt, ranks.rank)
    except OSError as error:
        print(f"corral: cannot write {run_dir / 'exit'}: {error.strerror}", file=sys.stderr, flush=True)


def _hint(code: int) -> str:
    if code == Requeue.code:
        return "start the same command again: it continues from the last checkpoint"
    if code == DistributedFailure.code:
        return "start the same command again; logs/ says which rank died and why"
    return "correct what the reason names and start the same command again"
