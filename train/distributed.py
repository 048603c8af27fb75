"""The group of ranks as one object, with a twin of size 1, so that nothing asks whether a process group exists."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of this run. Every method is collective: all ranks call it, in the same order."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    slices: int = 1
    """Consecutive ranks that work on the same rows, each on its slice of them (train/sequence_parallel.py)."""
    team: dist.ProcessGroup | None = None
    """These ranks; None: every rank works on rows of its own."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def reader(self) -> int:
        """Which share of the rows this rank works on, of ``readers``."""
        return self.rank // self.slices

    @property
    def readers(self) -> int:
        return self.world // self.slices

    @property
    def slice(self) -> int:
        """Which slice of its rows, of ``slices``."""
        return self.rank % self.slices

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        dtype = torch.float64 if self.device.type != "mps" else torch.float32
        tensor = torch.tensor(values, dtype=dtype, device=self.device)
        dist.all_reduce(tensor)
        return [float(each) for each in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        return self.sum([1.0 if flag else 0.0])[0] > 0

    def all(self, flag: bool) -> bool:
        """True on every rank only if it is true on each."""
        return not self.any(not flag)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The pickled ``value`` of rank ``source``, on every rank."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=source, device=self.device)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box


def ranks_from_environment(threads: int = 0) -> Ranks:
    """This process among torchrun's, before any process group: device set, CPU threads set (0: cores / processes)."""
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        # accelerate imports DeepSpeed, which otherwise warns that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_world))
        _keep_freed_memory()
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        local_world=local_world,
        device=device,
    )


def _keep_freed_memory() -> None:
    """On a CPU: glibc keeps what tensors free for the next ones.

    Otherwise the kernel takes large ones back at once and maps and clears new pages for the next: 7% of the time of an
    update of a Llama of 6 x 256. Other C libraries have no ``mallopt`` and are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


GROUP_TIMEOUT = timedelta(minutes=10)


def end_process(code: int) -> NoReturn:
    """Leave at once with ``code``, for a process that has had a process group and has closed all it opened.

    The interpreter's own teardown aborts in rare runs (gloo's threads: "terminate called without an active
    exception", SIGABRT), and torchrun would then call a finished run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
