"""What an exception that ends a rank means: one of our own, with its exit code, by its type and torch's words.

Out of memory comes first, whoever says it: NCCL and cuBLAS report it as errors of their own, and a run that starts
again at the same size runs out of memory again. Then a device or node that failed, which another node may not have.
Then a lost peer, whose record says why it was lost.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from conf.errors import (
    CannotCreate,
    CorralError,
    DeviceFailure,
    DistributedFailure,
    OutOfMemory,
    PermissionDenied,
    StorageError,
)

NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate", "unable to allocate",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusolver_status_alloc_failed",
    "cusparse_status_insufficient_resources", "insufficient memory",
)  # fmt: skip
DEVICE = (
    "uncorrectable ecc", "ecc error", "unspecified launch failure", "illegal instruction was encountered",
    "hardware stack error", "invalid address space", "invalid program counter", "uncorrectable nvlink",
    "fallen off the bus", "gpu is lost", "all cuda-capable devices are busy or unavailable",
    "no cuda-capable device is detected", "driver shutting down", "launch timed out and was terminated",
    "system not yet initialized", "device kernel image is invalid", "xid",
)  # fmt: skip
LOST_PEER = (
    "connection closed by peer", "connection reset", "connection refused", "connectfullmesh failed", "broken pipe",
    "timed out waiting", "nccl error", "nccl communicator was aborted", "communicator was aborted", "recvvector",
    "read error", "no route to host", "network is unreachable", "socket timeout", "connection timed out",
    "watchdog caught collective operation timeout", "remote process exited", "ncclremoteerror",
    "application timeout caused pair closure", "socketstartconnect", "connection was likely closed",
)  # fmt: skip
NETWORK = {
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTDOWN,
}  # fmt: skip
SMALLER_RUN = (
    "lower batch.micro_size or data.seq_len, set model.recompute=full, raise zero.stage, or set "
    "zero.offload=optimizer; `python -m launch plan` shows what fits"
)
SMALLER_COMMAND = (
    "use a device with more memory, or run this command on the CPU, with CUDA_VISIBLE_DEVICES= before it; an "
    "evaluation needs less with a lower evaluation.batch_size and batch.micro_size"
)
RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, whose exceptions are of no kind of Python's, give the system's number."""
STORAGE = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EREMOTEIO}


def named(error: BaseException, smaller: str = SMALLER_RUN) -> CorralError | None:
    """``error`` as one of our exceptions with an exit code, or None for a defect, which keeps its traceback.

    ``smaller``: what to do where memory was too small.
    """
    if isinstance(error, CorralError):
        return error
    number = _number(error)
    first, text = _first_line(error), str(error).lower()
    # Only errors of libraries speak these words by themselves; a ValueError of ours may quote them.
    told = text if isinstance(error, RuntimeError | OSError) else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or number == errno.ENOMEM or _says(told, NO_MEMORY):
        return OutOfMemory(f"out of memory: {smaller} (the error: {first})")
    if _says(told, DEVICE):
        return DeviceFailure(f"a device of this node failed ({first}); look at nvidia-smi and dmesg on this node")
    if isinstance(error, dist.DistError) or number in NETWORK or _says(told, LOST_PEER):
        return DistributedFailure(f"lost contact with another rank ({first}); the logs of the rank that died say why")
    if number in STORAGE or "input/output error" in told:
        return StorageError(f"reading or writing failed: {first}; free space or look at this disk, then start again")
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return CannotCreate(f"something is in the way: {first}; move it elsewhere, or set another run_dir")
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"no permission: {first}; ask its owner, or use another folder")
    return None


@contextmanager
def causes_named() -> Iterator[None]:
    """For commands of one process: an error that has a name leaves as it, so that the command ends in its sentence."""
    try:
        yield
    except Exception as error:  # every library has its own; a defect leaves as it came
        cause = named(error, SMALLER_COMMAND)
        if cause is None or cause is error:
            raise
        raise cause from error


def _number(error: BaseException) -> int | None:
    """The system's number of what went wrong, if ``error`` has one."""
    if isinstance(error, OSError):
        return error.errno
    told = RUST.search(str(error))
    return int(told[1]) if told else None


def _says(text: str, signs: tuple[str, ...]) -> bool:
    return any(sign in text for sign in signs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
