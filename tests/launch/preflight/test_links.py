"""Which nodes explain the links that failed or are slow."""

from __future__ import annotations

import pytest

from launch.preflight.links import Link, bandwidths, judged, summary


def ring(*speeds: float) -> list[Link]:
    """Links n0-n1, n1-n2, ... and back to n0, each with bytes per second; 0 is a failed one."""
    size = len(speeds)
    return [
        Link((f"n{place}", f"n{(place + 1) % size}"), speed, 1e-4, "" if speed else "no answer")
        for place, speed in enumerate(speeds)
    ]


@pytest.mark.parametrize(
    ("links", "bad"),
    [
        (ring(10, 10, 10), []),
        (ring(10, 0, 0), ["n2"]),  # both links of n2
        (ring(0, 10, 0), ["n0"]),  # both of the head
        (ring(10, 0, 10), ["n2"]),  # one link: the later of its ends
        (ring(0, 10, 10), ["n1"]),  # and not the head
        (ring(0, 10, 10, 0, 10, 10), ["n1", "n4"]),  # two links without a common node
        (ring(10, 1, 1), ["n2"]),
        (ring(10, 1, 10), []),  # a slow link between two nodes with a good one each
        (ring(10, 2.1, 2.1), []),
        (ring(10)[:1], []),
    ],
)
def test_as_few_nodes_as_explain_the_links(links: list[Link], bad: list[str]) -> None:
    assert sorted(name for fault in judged(links, "n0") for name in fault.nodes) == bad


def test_the_head_is_kept_if_another_explains_it_too() -> None:
    assert [fault.nodes for fault in judged(ring(10, 0, 10), "n2")] == [("n1",)]


def test_of_two_nodes_none_is_slow() -> None:
    assert judged([Link(("n0", "n1"), 1.0, 1.0)], "n0") == []


def test_a_summary_of_many_nodes_has_the_slowest() -> None:
    links = ring(*[10.0 * 2**30] * 20, 5 * 2**30, 5 * 2**30)
    assert "the slowest are n21 5.00 GiB/s 0.10 ms, " in summary(links, (2**30, 1e-3))
    assert bandwidths(links)["n21"] == 5 * 2**30
