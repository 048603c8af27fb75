"""The groups of real gloo processes: which group carries what, and how long each waits."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_distributed
from tests.train.engine.test_engine import make_engine
from train.ranks.group import CONTROL_TIMEOUT, GROUP_TIMEOUT, Ranks


def timeout_of(group: dist.ProcessGroup) -> timedelta:
    found: timedelta = group._get_backend(torch.device("cpu")).options._timeout  # type: ignore[attr-defined]
    return found


def timeouts(ranks: Ranks) -> list[tuple[bool, timedelta]]:
    """Of every group of this process once an engine of each stage has made its own: is it the control group, timeout"""
    for stage in range(4):
        make_engine(ranks, stage, 1)
    groups = list(dist.distributed_c10d._world.pg_map)
    return [(group is ranks.control, timeout_of(group)) for group in groups]


@pytest.mark.slow
def test_deepspeeds_groups_wait_as_long_as_ours_and_the_control_group_for_hours() -> None:
    for found in run_distributed(timeouts, 2):
        assert len(found) >= 3  # the default group, the control group, DeepSpeed's
        assert [timeout for control, timeout in found if control] == [CONTROL_TIMEOUT]
        assert {timeout for control, timeout in found if not control} == {GROUP_TIMEOUT}


TENSORS = ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast", "barrier")


def groups_used(ranks: Ranks) -> dict[str, Any]:
    """Result of each method of ``Ranks``, and whether its exchanges were in the control group."""
    used: dict[str, Any] = {}
    calls: list[bool] = []

    def watched(function: Any) -> Any:
        def call(*given: Any, group: Any = None, **named: Any) -> Any:
            calls.append(group is ranks.control)
            return function(*given, group=group, **named)

        return call

    with (
        mock.patch.multiple(dist, **{name: watched(getattr(dist, name)) for name in TENSORS}),
        mock.patch.multiple(
            dist.distributed_c10d, **{name: watched(getattr(dist.distributed_c10d, name)) for name in TENSORS}
        ),
    ):
        for name, call in {
            "barrier": ranks.barrier,
            "broadcast": lambda: ranks.broadcast({"rank": ranks.rank}),
            "gather": lambda: ranks.gather((ranks.rank, "x" * (1 + ranks.rank))),
            "sum": lambda: ranks.sum([1.0, 0.5]),
            "any": lambda: ranks.any(ranks.rank == 1),
            "all": lambda: ranks.all(ranks.rank == 1),
        }.items():
            calls.clear()
            used[name] = (call(), set(calls))
    return used


def test_objects_and_waits_use_the_control_group_and_tensors_the_default_group() -> None:
    control, default = {True}, {False}
    for found in run_distributed(groups_used, 3):
        assert found == {
            "barrier": (None, control),
            "broadcast": ({"rank": 0}, control),
            "gather": ([(0, "x"), (1, "xx"), (2, "xxx")], control),
            "sum": ([3.0, 1.5], default),
            "any": (True, default),
            "all": (False, default),
        }


def collected(ranks: Ranks) -> tuple[list[Any], int]:
    """What ``collect`` returns, and how many objects this rank received for it."""
    calls: list[int] = []
    receive = dist.recv_object_list

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(named["src"])
        assert named["group"] is ranks.control
        return receive(*given, **named)

    with mock.patch.object(dist, "recv_object_list", counted):
        found = ranks.collect({"rank": ranks.rank, "text": "x" * ranks.rank})
    return found, len(calls)


@pytest.mark.parametrize("world", [2, pytest.param(5, marks=pytest.mark.slow), 6])
def test_the_first_rank_alone_collects_from_all_in_rank_order_in_a_tree(world: int) -> None:
    first, *others = run_distributed(collected, world)
    assert first[0] == [{"rank": rank, "text": "x" * rank} for rank in range(world)]
    assert all(found == [] for found, _ in others)
    assert first[1] == (world - 1).bit_length()  # not world - 1: others have collected before
    assert sum(received for _, received in (first, *others)) == world - 1


def test_a_rank_alone_needs_no_group() -> None:
    alone = Ranks()
    alone.barrier()
    assert alone.collect("x") == ["x"]
    assert (alone.broadcast("x"), alone.gather("x"), alone.sum([2.0]), alone.any(True), alone.all(False)) == (
        "x", ["x"], [2.0], True, False,
    )  # fmt: skip


def wait_for_the_dead(ranks: Ranks, folder: str) -> None:
    """Rank 1 dies before anything but the start was exchanged; the others note how long they waited for it."""
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        ranks.broadcast("x")
        ranks.gather("x")
    except RuntimeError as error:
        Path(folder, f"{ranks.rank}").write_text(f"{time.monotonic() - began} {error}")
        raise


def test_the_death_of_a_rank_ends_the_wait_of_hours_at_once(tmp_path: Path) -> None:
    """With six ranks no rank is connected to all others, so most hear of it from a rank that has left."""
    with pytest.raises(AssertionError, match=r"Connection closed by peer|Connection reset|Read error"):
        run_distributed(wait_for_the_dead, 6, str(tmp_path), timeout=60.0)
    waited = {path.name: float(path.read_text().split()[0]) for path in tmp_path.iterdir()}
    assert waited.keys() == {"0", "2", "3", "4", "5"}
    assert max(waited.values()) < 10.0
