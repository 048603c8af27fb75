"""How a rank leaves: its cause in a file, its sentence on stderr once per node, its exit code."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from conf.errors import (
    BadData,
    CannotCreate,
    ConfigError,
    CorralError,
    DistributedFailure,
    MissingInput,
    OutOfMemory,
    PermissionDenied,
    Requeue,
    describe,
)
from conf.exits import ExitRecord, merge_exits, write_rank_exit
from train.distributed import Ranks
from train.state import TrainState

LOST_PEER = (
    "Connection closed by peer",
    "Connection reset",
    "Connection refused",
    "connectFullMesh failed",
    "Broken pipe",
    "Timed out waiting",
    "NCCL error",
    "recvVector",
)
EVERY_RANK_SEES = (ConfigError, MissingInput, BadData, CannotCreate, PermissionDenied)


def named(error: BaseException) -> CorralError | None:
    """The kind of failure ``error`` is, or None if it is a defect that deserves its traceback."""
    if isinstance(error, CorralError):
        return error
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return OutOfMemory(
            "out of memory: lower batch.micro_size or data.seq_len, set model.recompute=full, "
            "raise zero.stage, or set zero.offload=optimizer; `python -m launch plan` shows what fits"
        )
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER):
        first = str(error).strip().splitlines()[0]
        return DistributedFailure(f"lost contact with another rank ({first}); the logs of the rank that died say why")
    return None


def leave(run: Callable[[TrainState], None], *, run_dir: Path, ranks: Ranks, attempt: Callable[[], int]) -> int:
    """Call ``run``, record how it ended and return the exit code. Defects keep their traceback."""
    state = TrainState()
    try:
        run(state)
        record = ExitRecord(0, "done", state.step, "", attempt())
    except BaseException as error:
        cause = named(error)
        reason = str(cause) if cause else f"{type(error).__name__}: {error}"
        code = cause.code if cause else 130 if isinstance(error, KeyboardInterrupt) else 70
        record = ExitRecord(code, reason, state.step, _hint(code), attempt())
        if cause is None:
            traceback.print_exc()
        elif ranks.local_rank == 0 or not isinstance(error, EVERY_RANK_SEES):
            print(describe(cause), file=sys.stderr, flush=True)
    _write(run_dir, ranks, record)
    if record.code and ranks.rank:
        # torchrun and srun end the group as soon as one rank leaves: let rank 0 say its sentence first.
        time.sleep(3)
    return record.code


def _write(run_dir: Path, ranks: Ranks, record: ExitRecord) -> None:
    """The rank's file and the merged exit.json; a folder that cannot be written has been reported already."""
    if not run_dir.is_dir():
        return
    try:
        write_rank_exit(run_dir, ranks.rank, record)
        merge_exits(run_dir, record.attempt)
    except OSError as error:
        print(f"corral: cannot write {run_dir / 'exit'}: {error.strerror}", file=sys.stderr, flush=True)


def _hint(code: int) -> str:
    if code == Requeue.code:
        return "start the same command again: it continues from the last checkpoint"
    if code == DistributedFailure.code:
        return "start the same command again; logs/ says which rank died and why"
    return "correct what the reason names and start the same command again"
