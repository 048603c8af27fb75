"""The one collective of a step carries what an object gather and a sum carried, bit for bit."""

from __future__ import annotations

import math
import time
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.distributed import run_distributed
from train.process.run_dir import batch_digest
from train.ranks.group import Ranks
from train.ranks.step import Signs, tell

UIDS: list[tuple[int, ...]] = [(2**64 - 1, 0, 629280168657854537), (), (7, 2**63)]
"""Of three ranks; ids have 64 bits without a sign, and a rank may have no sample."""


def figures_of(rank: int) -> list[float]:
    """Some that float32 holds exactly, of very different size, so that the order of a sum would show in float32."""
    return [1e8 + rank, 0.1 * (rank + 1), -0.0]


def told(ranks: Ranks) -> dict[str, Any]:
    calls: list[str] = []

    def watched(name: str) -> Any:
        function = getattr(dist, name)

        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*given, **named)

        return call

    names = ("all_gather_into_tensor", "all_reduce", "all_gather", "broadcast", "all_gather_object", "barrier")
    figures = [torch.tensor(value) for value in figures_of(ranks.rank)]
    with mock.patch.multiple(dist, **{name: watched(name) for name in names}):
        own = [ranks.rank + 0.1, math.nan]
        found = tell(
            ranks,
            figures,
            signs=Signs(stop=ranks.rank == 2, writing=ranks.rank == 0),
            uids=UIDS[ranks.rank],
            most=3,
            own=own,
        )
        once = list(calls)
        quiet = tell(ranks, figures[:1], signs=Signs(), uids=UIDS[ranks.rank], most=3)
        nan = tell(ranks, [torch.tensor(math.nan if ranks.rank == 1 else 1.0)], signs=Signs(), uids=(), most=1)
    before = ranks.sum([float(each) for each in figures]), ranks.gather(UIDS[ranks.rank])
    return {
        "figures": found.figures == before[0],
        "digest": batch_digest(found.uids) == batch_digest(uid for uids in before[1] for uid in uids),
        "uids": found.uids.tolist(),
        "own": [[str(each) for each in row] for row in found.own.tolist()],
        "signs": (tuple(found.signs), tuple(quiet.signs)),
        "nan": [math.isnan(each) for each in nan.figures],
        "calls": once,
    }


def test_what_ranks_tell_is_what_they_told_one_by_one() -> None:
    answers = run_distributed(told, 3)
    for rank, found in enumerate(answers):
        assert found["figures"], rank
        assert (found["nan"], found["signs"]) == ([True], ((True, True, False), (False, False, False))), rank
        assert found["calls"] == ["all_gather_into_tensor"], rank
    assert answers[0]["digest"]
    assert answers[0]["uids"] == [uid for uids in UIDS for uid in uids]
    assert answers[0]["own"] == [["0.1", "nan"], ["1.1", "nan"], ["2.1", "nan"]]
    assert [found["uids"] + found["own"] for found in answers[1:]] == [[], []]  # the first rank writes the ledger


def test_a_rank_alone_tells_itself() -> None:
    found = tell(Ranks(), [torch.tensor(0.1)], signs=Signs(stop=True, save=True), uids=(5, 2**63), most=2)
    assert (found.figures, found.signs, found.uids.tolist()) == (
        [float(np.float32(0.1))],
        (True, False, True),
        [5, 2**63],
    )


@pytest.mark.parametrize("world", [8, 512])
def test_a_step_costs_a_rank_less_than_a_millisecond_of_host_time(world: int) -> None:
    """The first rank, which does most, with 8 samples per rank, and the wire left out: a fake group plays it by a copy
    per rank, which on GPUs is the device's work."""
    gather, wire = dist.all_gather_into_tensor, []

    def played(*tensors: torch.Tensor) -> None:
        began = time.thread_time()
        gather(*tensors)
        wire.append(time.thread_time() - began)

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        ranks, figures, uids = Ranks(world=world), [torch.tensor(1.0), torch.tensor(2.0)], tuple(range(8))
        seconds = []
        with mock.patch.object(dist, "all_gather_into_tensor", played):
            for _ in range(50):
                began = time.thread_time()  # of a core: other processes of this machine take none of it
                tell(ranks, figures, signs=Signs(), uids=uids, most=8)
                seconds.append(time.thread_time() - began - wire[-1])
    finally:
        dist.destroy_process_group()
    assert len(wire) == 50
    assert sorted(seconds)[10] < 1e-3, sorted(seconds)[::10]
