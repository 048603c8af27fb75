"""What all ranks were fed, step by step, is one list: for any number of ranks, any prefetch and any number of kills."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import DataConfig, StopConfig
from data_prep.stream.stream import GlobalStep, Stream, rank_rows
from tests.data_prep.streams import FakeSplit, all_samples, data_config, fake_split, leaf

Line = tuple[int, tuple[tuple[int, int], ...], int, int]
"""A step's line in the ledger: step, samples as the ranks were fed them, tokens, targets."""


@dataclass(frozen=True)
class Mixture:
    splits: dict[str, FakeSplit]
    data: DataConfig
    seed: int
    global_size: int

    def stream(self) -> Stream:
        return Stream(self.splits, self.data, seed=self.seed, global_size=self.global_size)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    sizes = draw(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 9), st.none() | st.integers(1, 3)), min_size=1))
    sources = {f"s{number}": each for number, each in enumerate(sizes[:5])}
    tree = {name: leaf(weight=float(weight), max_epochs=most) for name, (_, weight, most) in sources.items()}
    stop = draw(st.sampled_from([StopConfig(examples=300), StopConfig(epochs=1.5), StopConfig(tokens=4000)]))
    data = data_config(tree, stop=stop, window=draw(st.integers(1, 90)), pack=draw(st.sampled_from(["exact", "none"])))
    splits = {name: fake_split(name, rows) for name, (rows, _, _) in sources.items()}
    return Mixture(splits, data, draw(st.integers(0, 2**32)), draw(st.integers(1, 12)))


def fed(step: GlobalStep, world: int) -> Line:
    """The line that ``world`` ranks write together, each from its own share."""
    shares = [rank_rows(step, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "a rank with more micro-steps than another hangs the run"
    return (
        step.index,
        tuple(pair for share in shares for row in share for pair in row.samples),
        step.tokens,
        step.targets,
    )


def prefetched(stream: Stream, ahead: int, looks: bool) -> Iterator[tuple[GlobalStep, dict[str, Any]]]:
    """A loader that fetches ``ahead`` steps early and takes the state along with each, as a checkpoint needs it.

    ``looks``: every second step is made by the stream's own thread while the state is taken.
    """
    queue: list[tuple[GlobalStep, dict[str, Any]]] = []
    for step in stream:
        if looks and step.index % 2:
            stream.look_ahead()
        queue.append((step, stream.state_dict()))
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue


@given(mixtures(), st.integers(0, 5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_ledger_is_the_same_for_any_number_of_ranks_and_any_prefetch(
    mixture: Mixture, ahead: int, looks: bool
) -> None:
    alone = [fed(step, 1) for step in mixture.stream()]
    for world in (2, 3, 4, 8):
        assert [fed(step, world) for step, _ in prefetched(mixture.stream(), ahead, looks)] == alone


LIVES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=5
)
"""Of each life of a run: ranks, steps until it is killed, steps between checkpoints, steps fetched ahead, and whether
the stream looks ahead."""


@given(mixtures(), LIVES)
@settings(max_examples=40, deadline=None)
def test_the_ledger_survives_kills_and_other_numbers_of_ranks(
    mixture: Mixture, lives: list[tuple[int, int, int, int, bool]]
) -> None:
    ledger: list[Line] = []
    saved = json.dumps(mixture.stream().state_dict())
    for world, until_killed, every, ahead, looks in [*lives, (1, 10**9, 10**9, 0, False)]:
        stream = mixture.stream()
        stream.load_state_dict(json.loads(saved))
        ledger = ledger[: json.loads(saved)["step"]]  # what was done after the checkpoint is done again
        for step, state in islice(prefetched(stream, ahead, looks), until_killed):
            ledger.append(fed(step, world))
            if (step.index + 1) % every == 0:
                saved = json.dumps(state)
    assert ledger == [fed(step, 1) for step in mixture.stream()]


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(1, 4)), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_rows_are_used_evenly_through_any_changes_of_the_mixture(changes: list[tuple[set[int], int]]) -> None:
    """Sources come, go and return at window edges; no row of a source is ever two uses ahead of another."""
    splits = {f"s{number}": fake_split(f"s{number}", 20 + 7 * number) for number in range(6)}
    used = {name: Counter[int]() for name in splits}
    state: dict[str, Any] = {}
    for present, windows in changes:
        tree = {f"s{number}": leaf(weight=1.0 + number) for number in sorted(present)}
        data = data_config(tree, stop=StopConfig(examples=5000), window=37, allow_change=True)
        stream = Stream({name: splits[name] for name in tree}, data, seed=1, global_size=1)
        if state:
            stream.load_state_dict(state)
        edges = 0
        while edges < windows:
            for source, row in all_samples([next(stream)]):
                used[stream.names[source]][row] += 1
            state = json.loads(json.dumps(stream.state_dict()))
            edges += state["offset"] == 0
        for name, counts in used.items():
            times = [counts[row] for row in range(splits[name].rows)]
            assert max(times) - min(times) <= 1
