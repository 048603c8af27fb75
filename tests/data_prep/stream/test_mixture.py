"""Weights to shares to draws: exact integers, within 2 of ideal at every draw, and every rule that ends the data."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import ConfigError
from conf.schema import RateConfig, SourceConfig, StopConfig
from data_prep.stream.mixture import SHARES, Quota, Size, check_names, fractions, leaves_of, whole_shares
from data_prep.stream.phases import Amounts, Phase, Schedule, total_draws
from tests.data_prep.streams import leaf

WEIGHTS = st.lists(st.fractions(Fraction(1, 10**6), 10**6), min_size=1, max_size=40)


def flan_like_shares() -> list[int]:
    """1,389 leaves as uneven as the FLAN mixture's: five groups, and task sizes of 1/k within each."""
    groups = [(0.4, 284), (0.32, 772), (0.2, 4), (0.05, 325), (0.03, 4)]
    return whole_shares([Fraction(repr(w)) / (k + 1) for w, count in groups for k in range(count)])


@given(WEIGHTS)
def test_shares_are_whole_and_lose_nothing(weights: list[Fraction]) -> None:
    shares = whole_shares(weights)
    assert sum(shares) == SHARES
    assert min(shares) >= 1
    total = sum(weights)
    # Only a share raised from 0 to 1 may take more than the rounding from another.
    raised = sum(weight * SHARES < total for weight in weights)
    assert all(
        abs(share - weight * SHARES / total) <= 1 + raised for share, weight in zip(shares, weights, strict=True)
    )


@given(WEIGHTS, st.integers(0, 10**9))
@settings(deadline=None)
def test_quota_sums_and_stays_within_two(weights: list[Fraction], draws: int) -> None:
    shares = whole_shares(weights)
    before, after = (Quota(shares).counts(each) for each in (draws, draws + 1))
    assert (sum(before), sum(after)) == (draws, draws + 1)
    assert all(0 <= later - earlier <= 1 for earlier, later in zip(before, after, strict=True))
    assert all(abs(c - Fraction(share * draws, SHARES)) <= 2 for c, share in zip(before, shares, strict=True))


def test_quota_of_a_large_mixture() -> None:
    shares = flan_like_shares()
    quota, previous, worst = Quota(shares), [0] * len(shares), Fraction(0)
    for draws in [*range(0, 3000, 7), *range(10**6, 10**6 + 50), 10**9, 10**15]:
        counts = quota.counts(draws)
        assert sum(counts) == draws
        assert all(now >= then for now, then in zip(counts, previous, strict=True))
        worst = max(worst, *(abs(c * SHARES - s * draws) for c, s in zip(counts, shares, strict=True)))
        previous = counts
    assert worst <= 2 * SHARES


def test_zero_shares_are_never_drawn() -> None:
    assert Quota([0, SHARES, 0]).counts(1000) == [0, 1000, 0]
    assert whole_shares([Fraction(0), Fraction(1, 3), Fraction(2, 3)])[0] == 0


SIZES = {"a": Size(100, 1000), "b": Size(300, 6000), "g.x": Size(50, 500), "g.y": Size(150, 4500)}


def shares_of(unit: str = "examples", **nodes: SourceConfig) -> dict[str, Fraction]:
    return fractions(nodes, SIZES, unit)


def test_default_is_in_proportion_to_rows_in_either_unit() -> None:
    rows = {"a": Fraction(1, 6), "b": Fraction(1, 2), "g.x": Fraction(1, 12), "g.y": Fraction(1, 4)}
    nodes = {"a": leaf(), "b": leaf(), "g": SourceConfig(sources={"x": leaf(), "y": leaf()})}
    assert shares_of("examples", **nodes) == rows
    assert shares_of("tokens", **nodes) == rows


def test_weights_multiply_down_the_tree() -> None:
    group = SourceConfig(weight=3.0, sources={"x": leaf(weight=0.1), "y": leaf(weight=0.3)})
    assert shares_of(a=leaf(weight=1.0), g=group) == {
        "a": Fraction(1, 4),
        "g.x": Fraction(3, 16),
        "g.y": Fraction(9, 16),
    }


def test_weights_of_tokens_are_converted_by_mean_length() -> None:
    shares = shares_of("tokens", a=leaf(weight=1.0), b=leaf(weight=1.0))
    tokens = {name: share * SIZES[name].tokens / SIZES[name].rows for name, share in shares.items()}
    assert tokens["a"] == tokens["b"]
    assert sum(shares.values()) == 1


def test_rate_scales_then_caps_then_cools_and_holds_for_all_leaves_below() -> None:
    capped = SourceConfig(rate=RateConfig(cap=100, scale=2.0), sources={"x": leaf(), "y": leaf()})
    assert shares_of(a=leaf(), g=capped) == {"a": Fraction(1, 3), "g.x": Fraction(1, 3), "g.y": Fraction(1, 3)}
    cooled = leaf(rate=RateConfig(temperature=2.0))
    shares = shares_of(a=cooled, b=cooled)
    assert float(shares["b"] / shares["a"]) == pytest.approx(3**0.5, rel=1e-15)


def test_zero_weight_is_absent_also_for_a_whole_group() -> None:
    group = SourceConfig(weight=0.0, sources={"x": leaf(), "y": leaf()})
    assert shares_of(a=leaf(), b=leaf(weight=0.0), g=group) == {"a": 1}
    tree = {"a": leaf(), "b": leaf(weight=0.0), "g": group}
    assert {each.name: each.present for each in leaves_of(tree)} == {"a": True, "b": False, "g.x": False, "g.y": False}
    check_names(tree, ["a"])
    check_names(tree, ["a", "b", "g.x"])


def test_mistakes_in_the_tree_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources: b has no weight but a has"):
        shares_of(a=leaf(weight=1.0), b=leaf())
    with pytest.raises(ConfigError, match="every weight is 0"):
        shares_of(a=leaf(weight=0.0))
    with pytest.raises(ConfigError, match=r"only in data\.sources: b; only in the corpus: c"):
        check_names({"a": leaf(), "b": leaf()}, ["a", "c"])


def schedule(rows: list[int], weights: list[int], epochs: list[int | None]) -> Schedule:
    limits = [None if each is None else each * n for each, n in zip(epochs, rows, strict=True)]
    return Schedule([Fraction(weight) for weight in weights], limits)


SOURCES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 9), st.none() | st.integers(1, 3)), min_size=1, max_size=5
)


@given(SOURCES)
@settings(deadline=None)
def test_a_source_retires_at_its_exact_last_draw(sources: list[tuple[int, int, int | None]]) -> None:
    rows, weights, epochs = (list(column) for column in zip(*sources, strict=True))
    plan = schedule(rows, weights, epochs)
    end = plan.possible if plan.possible is not None else 500
    previous = [0] * len(rows)
    for draws in range(1, end + 1):
        counts = plan.counts(draws)
        assert sum(counts) == draws
        assert all(0 <= now - then <= 1 for now, then in zip(counts, previous, strict=True))
        assert all(limit is None or count <= limit for count, limit in zip(counts, plan.limits, strict=True))
        previous = counts
    if plan.possible is not None:
        assert previous == plan.limits == plan.counts(10 * end + 5)


def test_the_others_keep_their_proportions_when_a_source_retires() -> None:
    plan = schedule([100, 1000, 1000], [8, 1, 1], [1, None, None])
    first, end = plan.at(0)
    assert end is not None
    assert first.counts(end)[0] == 100
    assert first.counts(end - 1)[0] == 99
    assert plan.at(end)[0].shares == (0, SHARES // 2, SHARES // 2)


def brute_force(stop: StopConfig, plan: Schedule, rows: list[int], lengths: list[list[int]]) -> int:
    """Draw by draw; ``lengths`` in the order of the draws of a source, every pass alike."""
    counts, tokens = [0] * len(rows), 0
    for draws in range(1, 10**6):
        before, counts = counts, plan.counts(draws)
        if counts == before:
            return draws - 1
        source = next(s for s, (now, then) in enumerate(zip(counts, before, strict=True)) if now > then)
        tokens += lengths[source][before[source] % rows[source]]
        used = [count >= n for count, n in zip(counts, rows, strict=True)]
        if stop.examples is not None and draws >= stop.examples:
            return draws
        if stop.epochs is not None and draws >= stop.epochs * sum(rows):
            return draws
        if stop.tokens is not None and tokens >= stop.tokens:
            return draws
        if (stop.first_exhausted and any(used)) or (stop.all_seen_once and all(used)):
            return draws
    raise AssertionError("does not end")


STOPS = [
    StopConfig(epochs=1.0),
    StopConfig(epochs=0.3),
    StopConfig(examples=77),
    StopConfig(tokens=1),
    StopConfig(tokens=4321),
    StopConfig(first_exhausted=True),
    StopConfig(all_seen_once=True),
]


@pytest.mark.parametrize("stop", STOPS, ids=str)
@given(SOURCES)
@settings(max_examples=25, deadline=None)
def test_the_data_ends_where_counting_says(stop: StopConfig, sources: list[tuple[int, int, int | None]]) -> None:
    rows, weights, epochs = (list(column) for column in zip(*sources, strict=True))
    lengths = [[1 + (7 * row + s) % 40 for row in range(n)] for s, n in enumerate(rows)]

    def tokens_between(before: list[int], after: list[int]) -> int:
        spans = zip(lengths, rows, before, after, strict=True)
        return sum(each[d % n] for each, n, first, last in spans for d in range(first, last))

    amounts = Amounts(rows, [sum(each) for each in lengths], tokens_between)  # type: ignore[arg-type]
    plan = schedule(rows, weights, epochs)
    assert total_draws(stop, plan, amounts) == brute_force(stop, plan, rows, lengths)


def test_counters_go_on_through_a_changed_mixture() -> None:
    first, second = whole_shares([Fraction(1), Fraction(3)]), whole_shares([Fraction(3), Fraction(1)])
    old = Phase(0, (0, 0), tuple(first))
    new = Phase(101, tuple(old.counts(101)), tuple(second))
    plan = Schedule([Fraction(3), Fraction(1)], [None, None], [old, new])
    counts = np.array([plan.counts(draws) for draws in range(301)])
    assert (counts.sum(1) == np.arange(301)).all()
    assert (np.diff(counts, axis=0) >= 0).all()
    ideal = list(accumulate([0.25] * 101 + [0.75] * 199, initial=0.0))
    assert np.abs(counts[:, 0] - ideal).max() <= 2
