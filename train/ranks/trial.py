"""``python -m train.ranks.trial``: one process per node tries out what a run rests on, before the run.

A matrix product on every device, whose bits are compared; an all-reduce with each neighbour on the ring of nodes, whose
bandwidth and latency tell a slow or unreachable node from its neighbours; and an all-reduce over all nodes. Over NCCL
between GPUs, else gloo, over the interface that the ranks of the run will use. Started by launch/preflight, which reads
the lines that it writes; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from conf.attempts.preflight import ABSENT, BITS, DONE, FAULT, GO, LINK, READY, TOGETHER, say
from train.ranks.environment import address_of, own_address, prepare_environment
from train.ranks.group import Ranks, end_process, ranks_from_environment

MEET_S = 6.0
"""All nodes are ready when they begin, so one that has not come after this time cannot."""
CONNECT_S = 2.0
LINK_S, NCCL_S = timedelta(seconds=3), timedelta(seconds=10)
ROUND_S = 20.0
"""A link that answers and then fails takes some multiples of LINK_S."""
BYTES = 1 << 23
TIMES = 5
"""The best of these counts: other jobs use the network too."""
SLOW_S = 0.3
"""An all-reduce that takes longer is not repeated."""


def devices() -> list[torch.device]:
    """Those that a run would use."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def bits(device: torch.device) -> str:
    """Digest of the product of two fixed matrices, whose every bit follows from the device and its libraries."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=generator)
    if device.type == "cuda":
        left, right = left.bfloat16(), right.bfloat16()
    product = (left.to(device) @ right.to(device)).float().cpu()
    return hashlib.blake2b(product.numpy().tobytes(), digest_size=4).hexdigest()


def rounds(world: int) -> list[list[tuple[int, int]]]:
    """The links of the ring of all nodes, so divided that no node has two at once."""
    links = [(rank, rank + 1) for rank in range(world - 1)]
    last = [[(0, world - 1)]] if world > 2 else []
    if world % 2 == 0 and last:  # the last link shares no node with the second round
        return [links[::2], links[1::2] + last[0]]
    return [each for each in (links[::2], links[1::2], *last) if each]


class Meeting:
    """All nodes, at the first one's store. Raises DistStoreError if it cannot be reached."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            ranks.world,
            ranks.is_main,
            timedelta(seconds=MEET_S),
            wait_for_workers=False,
        )
        self.door = socket.create_server((_own_address(), 0))
        self.store.set(f"door-{ranks.rank}", json.dumps(self.door.getsockname()))

    def come(self, name: str) -> None:
        self.store.set(f"{name}-{self.ranks.rank}", "here")

    def absent(self, name: str, seconds: float = MEET_S) -> list[int]:
        """Come to ``name`` and wait for all there; returns who has not come."""
        keys = [f"{name}-{rank}" for rank in range(self.ranks.world)]
        try:
            self.come(name)
            self.store.wait(keys, timedelta(seconds=seconds))
        except dist.DistNetworkError:  # the store went with the first node
            return [0]
        except dist.DistStoreError:
            return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        return []

    def connect(self, link: str, other: int) -> None:
        """Raise RuntimeError if this node and ``other`` do not both reach each other: gloo and NCCL try for long."""
        address, port = json.loads(self.store.get(f"door-{other}"))
        failure = ""
        try:
            socket.create_connection((address, port), CONNECT_S).close()
        except OSError as error:
            failure = f"{address}: {error.strerror or error}"
        self.store.set(f"{link}-{self.ranks.rank}", failure)
        failure = failure or self.store.get(f"{link}-{other}").decode()
        if failure:
            raise RuntimeError(failure)

    def all_reduce(self, name: str, members: list[int]) -> tuple[float, float]:
        """(bytes per second, seconds for a number) of an all-reduce among ``members``. Raises RuntimeError."""
        store, place, size = PrefixStore(name, self.store), members.index(self.ranks.rank), len(members)
        device = self.ranks.device
        on_gpu = device.type == "cuda"
        group: Any = _nccl(store, place, size) if on_gpu else dist.ProcessGroupGloo(store, place, size, LINK_S)

        def seconds(tensor: torch.Tensor) -> float:
            began = time.perf_counter()
            group.allreduce([tensor]).wait()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - began

        number, much = torch.ones(1, device=device), torch.ones(BYTES // 4, device=device)
        seconds(number)
        if float(number) != size:
            raise RuntimeError(f"the sum of {size} ones was {float(number)}")
        latency = min(seconds(number) for _ in range(4 * TIMES))
        first = torch.tensor([seconds(much)], device=device)
        seconds(first)  # all members go on for as long
        again = TIMES if float(first) < SLOW_S * size else 0
        return BYTES / min(float(first) / size, *(seconds(much) for _ in range(again)), 1e9), latency


def _own_address() -> str:
    """Of the interface over which the ranks of the run will exchange data."""
    names = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")
    return address_of(names[0]) or own_address(os.environ["MASTER_ADDR"])


def _nccl(store: PrefixStore, rank: int, size: int) -> Any:
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a timeout raises; else it ends the process
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = NCCL_S
    return dist.ProcessGroupNCCL(store, rank, size, options)


def meet(ranks: Ranks) -> None:
    """Try every link of this node, and then all nodes together; say what was found."""
    try:
        meeting = Meeting(ranks)
    except RuntimeError as error:
        say(FAULT, "reach", f"it cannot reach the first node at {_head()} ({_first(error)}); look at its network")
        return
    if absent := meeting.absent("here"):
        say(ABSENT, absent[:100])
        return
    failed = False
    for number, links in enumerate(rounds(ranks.world)):
        for link in links:
            if ranks.rank in link:
                failed |= not _try(meeting, link)
        if failed:
            meeting.come("failed")
        if meeting.absent(f"round-{number}", ROUND_S):
            return
    keys = [f"failed-{rank}" for rank in range(ranks.world)]
    if not any(meeting.store.check([key]) for key in keys):
        _together(meeting)
    if ranks.is_main:
        meeting.absent("end")  # the store goes with the first node
    else:
        meeting.come("end")


def _together(meeting: Meeting) -> None:
    try:
        say(TOGETHER, *meeting.all_reduce("all", list(range(meeting.ranks.world))))
    except RuntimeError as error:
        say(FAULT, "together", f"an all-reduce over all nodes fails ({_first(error)}), though every link works")


def _try(meeting: Meeting, link: tuple[int, int]) -> bool:
    other = link[link[0] == meeting.ranks.rank]
    name = f"link-{link[0]}-{link[1]}"
    try:
        meeting.connect(name, other)
        say(LINK, other, *meeting.all_reduce(f"{name}-group", list(link)))
    except RuntimeError as error:
        say(LINK, other, _first(error))
        return False
    return True


def _head() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def main() -> None:
    found = devices()
    ranks = replace(ranks_from_environment(), local_world=1, device=found[0])
    say(BITS, len(found) if found[0].type == "cuda" else 0, [bits(device) for device in found])
    say(READY)
    if sys.stdin.readline().strip() == GO:
        if found[0].type == "cuda":
            torch.cuda.set_device(found[0])
        prepare_environment(ranks)
        meet(ranks)
        say(DONE)
    end_process(0)


if __name__ == "__main__":
    main()
