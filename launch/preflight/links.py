"""Judges the links between nodes that were tried: which node is unreachable or slow. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from launch.preflight.verdict import Fault

SLOWER = 5.0
"""A node is slow whose best link has this fraction of the usual bandwidth: switches and neighbours explain less."""


@dataclass(frozen=True)
class Link:
    """An all-reduce between two nodes."""

    ends: tuple[str, str]
    per_second: float = 0.0
    """Bytes."""
    latency: float = 0.0
    """Seconds for a number."""
    failure: str = ""


def judged(links: Sequence[Link], head: str) -> list[Fault]:
    return unreachable([link for link in links if link.failure], head) or slow(bandwidths(links))


def unreachable(failed: Sequence[Link], head: str) -> list[Fault]:
    """As few nodes as explain all failed links: the one with the most first, and rather another than the head."""
    found: list[Fault] = []
    while failed:
        counts = Counter(end for link in failed for end in link.ends)
        worst = max(counts, key=lambda node: (counts[node], node != head, node))
        of_it = [link for link in failed if worst in link.ends]
        others = [next(end for end in link.ends if end != worst) for link in of_it]
        with_them = " and with ".join(dict.fromkeys(others))
        reason = f"it exchanges no data with {with_them} ({of_it[0].failure}); look at its network"
        found.append(Fault((worst,), reason))
        failed = [link for link in failed if worst not in link.ends]
    return found


def bandwidths(links: Sequence[Link]) -> dict[str, float]:
    """Bytes per second of the best link of every node: a slow neighbour does not count."""
    best: dict[str, float] = {}
    for link in links:
        for end in link.ends:
            best[end] = max(best.get(end, 0.0), link.per_second)
    return best


def slow(best: Mapping[str, float]) -> list[Fault]:
    """Nodes whose bandwidth is far from the usual; two nodes have one link and so the same."""
    usual = median(best.values())
    return [
        Fault((node,), f"its network gives {shown(speed)} and the others' {shown(usual)}; look at its network card")
        for node, speed in best.items()
        if speed * SLOWER < usual
    ]


def shown(per_second: float) -> str:
    return f"{per_second / 2**30:.2f} GiB/s" if per_second >= 2**27 else f"{per_second / 2**20:.1f} MiB/s"


def summary(links: Sequence[Link], together: tuple[float, float]) -> str:
    """What was measured: each node of a few, the slowest of many."""
    latencies: dict[str, float] = {}
    for link in links:
        for end in link.ends:
            latencies[end] = min(latencies.get(end, link.latency), link.latency)
    ordered = sorted(bandwidths(links).items(), key=lambda item: item[1])
    several = sorted(ordered)[:8] if len(ordered) <= 8 else ordered[:3]
    words = [f"{node} {shown(speed)} {latencies[node] * 1e3:.2f} ms" for node, speed in several]
    slowest = "" if len(ordered) <= 8 else "the slowest are "
    return (
        f"all-reduce {shown(together[0])} {together[1] * 1e3:.2f} ms; with its neighbours, {slowest}{', '.join(words)}"
    )
