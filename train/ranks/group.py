"""The group of ranks as one object, with a twin of size 1, so that no caller asks whether a process group exists."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from conf.errors import ConfigError, CorralError
from train.ranks.affinity import cpus_beside, gpu_address, stay_on
from train.ranks.connections import end_silent_connections

T = TypeVar("T")

GROUP_TIMEOUT = timedelta(minutes=10)
"""How long a collective of tensors waits for the slowest rank; all ranks compute the same, so more is a fault."""

CONTROL_TIMEOUT = timedelta(hours=6)
"""How long ranks wait for one that downloads a base, or reads and hashes hundreds of gigabytes. A rank that died is
noticed at once all the same, because its connections close, and a cut link by its silence (connections.py)."""


@dataclass(frozen=True)
class Ranks:
    """The processes of this run. Every method is collective: all ranks call it, in the same order.

    Tensors travel in the default group: NCCL between GPUs, with a timeout of minutes. Objects and waits travel in the
    control group: gloo between hosts, with a timeout of hours, because one rank may read and hash much data meanwhile.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    slices: int = 1
    """Consecutive ranks that work on the same rows, each on its slice of them (train/batches/slices.py)."""
    team: dist.ProcessGroup | None = None
    """These ranks; None: every rank works on rows of its own."""
    control: dist.ProcessGroup | None = None
    """The control group, which ``init_distributed`` makes; None: this rank is alone."""

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
        """Wait until every rank is here. Control group."""
        if self.world > 1:
            dist.barrier(group=self.control)

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64. Default group: the values pass through the device."""
        if self.world == 1:
            return list(values)
        dtype = torch.float64 if self.device.type != "mps" else torch.float32
        tensor = torch.tensor(values, dtype=dtype, device=self.device)
        dist.all_reduce(tensor)
        return [float(each) for each in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one. Default group."""
        return self.sum([1.0 if flag else 0.0])[0] > 0

    def all(self, flag: bool) -> bool:
        """True on every rank only if it is true on each. Default group."""
        return not self.any(not flag)

    def broadcast(self, value: T, source: int = 0) -> T:
        """The pickled ``value`` of rank ``source``, on every rank. Control group."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=source, group=self.control, device=torch.device("cpu"))
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank. Control group."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self.control)
        return box

    def collect(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on the first rank alone; an empty list on the others. Control group.

        They go up a binary tree, whose connections exist, so only the first rank holds and unpickles those of all.
        """
        held, reach, host = [pickle.dumps(value)], 1, torch.device("cpu")
        while reach < self.world:
            if self.rank & reach:
                dist.send_object_list([held], dst=self.rank - reach, group=self.control, device=host)
                return []
            if self.rank + reach < self.world:
                box: list[list[bytes]] = [[]]
                dist.recv_object_list(box, src=self.rank + reach, group=self.control, device=host)
                held += box[0]
            reach *= 2
        return [pickle.loads(each) for each in held]

    def once(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on the first rank, which alone calls it, or its CorralError: on every rank.

        Control group, so ``work`` may take hours.
        """
        outcome: tuple[T | None, CorralError | None] = (None, None)
        if self.is_main:
            outcome = _outcome(work)
        value, failure = self.broadcast(outcome)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns here; a CorralError that it raises on any rank is raised on every rank. Control group.

        ``work`` must not be collective, because a rank on which it fails leaves it early.
        """
        value, own = _outcome(work)
        failure = next((each for each in self.gather(own) if each is not None), None)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]


def _outcome(work: Callable[[], T]) -> tuple[T | None, CorralError | None]:
    try:
        return work(), None
    except CorralError as error:
        return None, error


def in_control_group(ranks: Ranks) -> Ranks:
    """``ranks`` with their control group; needs the default group. Collective.

    Also where the default group is gloo: objects need the longer timeout there too.
    """
    if ranks.world == 1:
        return ranks
    # Two ranks connect when they first exchange something; else every rank would hold a socket to every other.
    os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
    try:
        ranks = replace(ranks, control=dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    finally:
        del os.environ["TORCH_GLOO_LAZY_INIT"]
    # It connects every rank with those 1, 2, 4, ... further, so with all that a broadcast or gather ever reaches: the
    # end of a process is seen by the connections that close, and would not be seen by one that was never there.
    ranks.barrier()
    end_silent_connections()
    return ranks


def ranks_from_environment() -> Ranks:
    """Which of torchrun's processes this is, before any process group and any device: nothing here can fail."""
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def on_device(ranks: Ranks, threads: int = 0) -> Ranks:
    """``ranks`` with this process's device, which is set.

    Beside a GPU the rank stays on the CPUs of its NUMA node; on CPUs the threads are set (0: cores / processes). Raises
    ConfigError (78) on every rank of a node with more processes than GPUs, and what torch raises of a GPU that fails.
    """
    if torch.cuda.is_available():
        _check_gpus(ranks.local_world, torch.cuda.device_count())
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
        stay_on(cpus_beside(gpu_address(device)), ranks.local_world)
        return replace(ranks, device=device)
    # accelerate imports DeepSpeed, which otherwise warns that it found no accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // ranks.local_world))
    _keep_freed_memory()
    return ranks


def _check_gpus(processes: int, gpus: int) -> None:
    if processes > gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise ConfigError(
            f"cluster.gpus_per_node: {processes} processes were started on {socket.gethostname()}, where torch sees "
            f"{gpus} GPU{'' if gpus == 1 else 's'}{limit}; start one per GPU, with cluster.gpus_per_node={gpus} or "
            f"torchrun --nproc-per-node={gpus}"
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


def end_process(code: int) -> NoReturn:
    """End the process at once with ``code``; for processes that had a process group and have closed their files.

    The interpreter's own teardown aborts in rare runs (gloo's threads: "terminate called without an active
    exception", SIGABRT), and torchrun would then call a finished run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
