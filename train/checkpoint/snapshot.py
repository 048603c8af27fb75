"""What a rank stores of one step, and host memory in which it stays as it was while training goes on."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from train.checkpoint.random_states import random_states
from train.ranks.group import Ranks

if TYPE_CHECKING:
    from train.engine import Engine  # reading a checkpoint needs no DeepSpeed

GIB = 2**30
FITS = 0.8
"""Share of the available host memory that the copies of a host's ranks may take."""


@dataclass(frozen=True)
class Snapshot:
    """A rank's part of a checkpoint."""

    tensors: dict[str, torch.Tensor]
    """NAME::KIND of every fragment's tensors, 1-D fp32."""
    pieces: dict[str, list[int]]
    """Parameter name -> first element, number of elements."""
    random: dict[str, torch.Tensor]


def snapshot(engine: Engine, ranks: Ranks) -> Snapshot:
    """This rank's part of the state as it is now: the fragments are the engine's own tensors. Not collective."""
    tensors: dict[str, torch.Tensor] = {}
    pieces: dict[str, list[int]] = {}
    for fragment in engine.fragments():
        pieces[fragment.name] = [fragment.start, fragment.numel]
        for kind, value in fragment.tensors.items():
            tensors[f"{fragment.name}::{kind}"] = value.detach()
    return Snapshot(tensors, pieces, random_states(ranks))


class HostCopy:
    """Memory for one copy of a rank's fragments. It is kept, because the system clears new memory page by page."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)
        self.grew = 0.0
        """Seconds that ``of`` took for new memory, in all."""

    def of(self, live: Snapshot) -> Snapshot:
        """``live`` with copies of its tensors, which a later step does not change. Overwrites the copies before."""
        numel = sum(tensor.numel() for tensor in live.tensors.values())
        if self._flat.numel() != numel:
            began = time.perf_counter()
            self._flat = torch.empty(0)  # the old memory is free before the new one is taken
            self._flat = torch.empty(numel).zero_()
            if any(tensor.is_cuda for tensor in live.tensors.values()):
                # Locked in place, so that the device copies at the full speed of its bus; where the system refuses, the
                # copy is slower and as good. torch's own pinned memory takes up to twice the size (powers of two).
                torch.cuda.cudart().cudaHostRegister(self._flat.data_ptr(), self._flat.nbytes, 0)  # type: ignore[no-untyped-call]
            self.grew += time.perf_counter() - began
        copies, start = {}, 0
        for name, tensor in live.tensors.items():
            copies[name] = self._flat.narrow(0, start, tensor.numel())
            copies[name].copy_(tensor, non_blocking=True)
            start += tensor.numel()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Snapshot(copies, live.pieces, live.random)


def lacking(live: Snapshot, ranks: Ranks) -> str:
    """Why the hosts have no room for a copy of their ranks' fragments, as a sentence's end; "" if all have. Collective.

    All ranks get the same answer.
    """
    own = sum(tensor.numel() * 4 for tensor in live.tensors.values())
    needed: dict[str, int] = {}
    room: dict[str, int] = {}
    for host, size, available in ranks.gather((socket.gethostname(), own, available_bytes())):
        needed[host] = needed.get(host, 0) + size
        room[host] = min(room.get(host, available), available)
    for host, size in needed.items():
        if size > FITS * room[host]:
            return (
                f"the copies of the ranks on {host} need {size / GIB:.1f} GiB of host memory, and they may take "
                f"{FITS:.0%} of the {room[host] / GIB:.1f} GiB that are available"
            )
    return ""


def available_bytes(root: Path = Path("/")) -> int:
    """Host memory that this process may still take: the system's, or less where its control group has a limit."""
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():  # not Linux: what is there in all, for want of better
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = meminfo.read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = root / "sys/fs/cgroup" / _control_group(root).lstrip("/")
    while group != root / "sys/fs":  # a limit of any group above holds too
        available = min(available, _room_in(group, available))
        group = group.parent
    return available


def _control_group(root: Path) -> str:
    """The path of this process's group in the unified hierarchy (cgroup v2)."""
    listed = root / "proc/self/cgroup"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _room_in(group: Path, otherwise: int) -> int:
    """What is left of a group's limit, files that the kernel can drop included."""
    try:
        limit, used, stat = (
            (group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        held = dict[str, str](line.split() for line in stat.splitlines())
    except (OSError, ValueError):
        return otherwise
    return otherwise if limit.strip() == "max" else int(limit) - int(used) + int(held.get("inactive_file", 0))
