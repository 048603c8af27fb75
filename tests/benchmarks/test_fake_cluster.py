"""The limits of a run of many ranks, held by the fake cluster of the benchmark; and that a planted growth is seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_checkpoints import Sharded, shapes_of
from benchmarks.fake_cluster import Figures, Size, measure, over_limits, table
from benchmarks.fake_ranks import FakeGroup
from benchmarks.scaling import measured
from train.ranks.group import Ranks

QUICK = Size(rows=200_000, divisor=2048, memory=False)


def counts(world: int, size: Size = QUICK) -> Figures:
    """Without times, which other processes make larger: the benchmark says which of them are over a limit."""
    return {label: value for label, value in measure(world, size).items() if " ms" not in label}


@pytest.fixture(scope="module")
def found() -> dict[int, Figures]:
    return {world: counts(world) for world in (8, 64, 512)}


@pytest.mark.slow
def test_nothing_grows_with_the_ranks_that_must_not(found: dict[int, Figures]) -> None:
    assert len(next(iter(found.values()))) > 20
    assert over_limits(found) == []


@pytest.mark.slow
def test_nor_at_4096_ranks(found: dict[int, Figures]) -> None:
    assert over_limits({**found, 4096: counts(4096, replace(QUICK, stages=(1,)))}) == []


@pytest.mark.slow
def test_what_a_rank_reads_is_its_share_of_the_state(found: dict[int, Figures]) -> None:
    state = 12 * sum(math.prod(shape) for shape in shapes_of(QUICK.divisor).values()) / 1e6
    for world, figures in found.items():
        for stage in (1, 3):
            assert figures[f"ZeRO-{stage} resume: state read, MB per rank"] == pytest.approx(state / world, rel=0.02)


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("step: own part, CPU ms, others", 1.01),
        ("start-up: opens, others", 11),
        ("ZeRO-1 resume: hashed MB per rank", 0.9),
    ],
)
def test_growth_is_seen(label: str, value: float) -> None:
    before = {"step: own part, CPU ms, others": 0.2, "start-up: opens, others": 10}
    small = {**before, "ZeRO-1 resume: hashed MB per rank": 40.0}
    large = {**before, "ZeRO-1 resume: hashed MB per rank": 0.7}
    assert over_limits({8: small, 512: large}) == []
    (said,) = over_limits({8: small, 512: {**large, label: value}})
    assert said.startswith(f"{label} at 512 ranks: {value}, the limit is ")


def everything(ranks: Ranks) -> tuple[Any, ...]:
    mine = ranks.rank + 1
    return (
        ranks.broadcast({"from": ranks.rank}, source=2),
        ranks.gather("x" * mine),
        ranks.collect(mine),
        ranks.sum([float(mine), 0.5]),
        ranks.any(ranks.rank == 1),
        ranks.together(lambda: mine),
        ranks.once(lambda: "first" if ranks.rank == 0 else "another"),
    )


def test_the_fake_group_gives_what_a_real_one_gives() -> None:
    """tests/train/ranks/test_group.py says so of gloo."""
    group = FakeGroup[tuple[Any, ...]](5)
    for rank, each in group.run(everything).items():
        collected = [1, 2, 3, 4, 5] if rank == 0 else []
        texts = ["x", "xx", "xxx", "xxxx", "xxxxx"]
        assert each == ({"from": 2}, texts, collected, [15.0, 2.5], True, rank + 1, "first")
    assert group.spent[3].opens == 0


def opening(ranks: Ranks, folder: Path) -> None:
    """Rank 1 opens three files, lists a folder and opens it."""
    if ranks.rank == 1:
        for number in range(3):
            (folder / f"{number}").write_text("x")
        assert len(list(folder.iterdir())) == 3
    ranks.barrier()
    if ranks.rank == 2:
        raise ValueError("rank 2")


def test_opens_are_counted_for_the_rank_that_opens_and_a_failure_ends_all(tmp_path: Path) -> None:
    group = FakeGroup[None](4)
    with pytest.raises(ValueError, match="rank 2"):
        group.run(lambda ranks: opening(ranks, tmp_path))
    assert [group.spent[rank].opens for rank in range(4)] == [0, 4, 0, 0]


@pytest.mark.parametrize("stage", [1, 3])
def test_the_ranks_hold_every_element_once(stage: int) -> None:
    shapes, held = {"a": (5, 3), "b": (7,), "c": (2, 4)}, []
    for rank in range(4):
        for fragment in Sharded(Ranks(rank=rank, world=4), stage, shapes).fragments():
            held += [(fragment.name, fragment.start + index) for index in range(fragment.numel)]
    assert sorted(held) == [(name, index) for name, shape in shapes.items() for index in range(math.prod(shape))]


def test_the_page_has_the_figures_of_all_sizes() -> None:
    text = measured()
    head = next(line for line in text.splitlines() if line.startswith("ranks "))
    assert head.split() == ["ranks", "8", "64", "512", "4,096"]
    labels = {line[: len(head) - 40].rstrip() for line in text.splitlines() if line[-1:].isdigit()}
    assert "ZeRO-3 resume: hashed MB per rank" in labels


def test_a_table_has_a_column_per_size() -> None:
    written = table({64: {"a: CPU ms": 0.1234}, 8: {"a: CPU ms": 1500.0}})
    assert written == "ranks             8        64\na: CPU ms     1,500     0.123"
