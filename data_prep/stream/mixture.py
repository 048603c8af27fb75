"""From the weights of the source tree to how often each source is drawn: exact, in integers, without a random number.

1. ``fractions`` turns the tree (weights, rates, rows) into one exact fraction per leaf.
2. ``whole_shares`` rounds the fractions to integers that sum to 2^31 (largest remainder).
3. ``Quota`` says how many of the first t draws belong to each source, in closed form: a Huffman tree over the shares
   splits t at every node by rounding to nearest, so that |count - share * t| < 2 for every source and every t.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from conf.errors import ConfigError
from conf.schema import RateConfig, SourceConfig

SHARES = 1 << 31
"""What the shares of all sources sum to: weights are kept to 5e-10."""

# 34 digits, correctly rounded on every machine, where a C library's pow() may differ in the last bit.
_DECIMAL = Context(prec=34)


@dataclass(frozen=True)
class Size:
    """How large one source is: its rows, and their tokens together."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class Leaf:
    name: str
    """Dotted path in ``data.sources``."""
    node: SourceConfig
    present: bool
    """False when a weight of 0, on it or above it, leaves it out."""


def leaves_of(sources: Mapping[str, SourceConfig], above: str = "", present: bool = True) -> Iterator[Leaf]:
    """Every leaf of the tree, in the order of the config."""
    for name, node in sources.items():
        here = present and node.weight != 0
        if node.sources is None:
            yield Leaf(above + name, node, here)
        else:
            yield from leaves_of(node.sources, f"{above}{name}.", here)


def check_names(sources: Mapping[str, SourceConfig], names: Iterable[str]) -> None:
    """ConfigError unless the corpus, which holds ``names``, and the config speak of the same sources."""
    held = set(names)
    leaves = {leaf.name: leaf for leaf in leaves_of(sources)}
    missing = [name for name, leaf in leaves.items() if leaf.present and name not in held]
    strangers = sorted(held - leaves.keys())
    found = [f"only in data.sources: {', '.join(missing)}"] if missing else []
    found += [f"only in the corpus: {', '.join(strangers)}"] if strangers else []
    if found:
        raise ConfigError(
            f"data.sources: the prepared corpus holds other training sources ({'; '.join(found)}); "
            "prepare it again from this config, or give a source that has no training rows weight: 0"
        )


def fractions(sources: Mapping[str, SourceConfig], sizes: Mapping[str, Size], unit: str) -> dict[str, Fraction]:
    """The share of draws of every leaf that takes part, summing to 1; keys are dotted names.

    Siblings share out what their parent has: by ``weight``, or, when none is given, by size. The size of a leaf is
    min(rows * scale, cap) ** (1 / temperature) with the rate of the leaf or of the nearest node above it (SeqIO,
    ``mixing_rate_num_examples``), plain rows without a rate; of a group, the sum over its leaves. With ``unit``
    "tokens" the weights share out tokens: sizes are taken times the mean length, and in the end each share is divided
    by its source's mean length. Raises ConfigError when only some siblings have a weight, or all weights are 0.
    """
    shares = _group("", sources, _Sizes(sizes, unit), None).leaves
    if not shares:
        raise ConfigError("data.sources: every weight is 0, so nothing would be drawn; give one a positive weight")
    if unit == "examples":
        return shares
    by_examples = {name: share * sizes[name].rows / sizes[name].tokens for name, share in shares.items()}
    total = sum(by_examples.values())
    return {name: share / total for name, share in by_examples.items()}


def whole_shares(weights: Sequence[Fraction], total: int = SHARES) -> list[int]:
    """Integers in proportion to ``weights`` that sum to ``total``: largest remainder, ties to the first.

    A positive weight never rounds to 0: it gets 1, taken from the largest.
    """
    denominator = math.lcm(*(weight.denominator for weight in weights))
    parts = [weight.numerator * (denominator // weight.denominator) for weight in weights]
    whole = sum(parts)
    shares = [part * total // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: -(parts[i] * total % whole))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    for i, part in enumerate(parts):
        if part and not shares[i]:
            shares[i] = 1
            shares[shares.index(max(shares))] -= 1
    return shares


class Quota:
    """How often each source is among the first t draws. ``shares`` are integers; 0 is never drawn."""

    def __init__(self, shares: Sequence[int]) -> None:
        heap = [(share, leaf) for leaf, share in enumerate(shares) if share > 0]
        if not heap:
            raise ValueError("a quota needs one positive share")
        heapq.heapify(heap)
        self._leaves = len(shares)
        self._nodes: list[tuple[int, int, int, int]] = []
        """(left, right, share of left, share of both) per inner node; its own number is leaves + position."""
        while len(heap) > 1:
            left_share, left = heapq.heappop(heap)
            right_share, right = heapq.heappop(heap)
            self._nodes.append((left, right, left_share, left_share + right_share))
            heapq.heappush(heap, (left_share + right_share, self._leaves + len(self._nodes) - 1))
        self._root = heap[0][1]

    def counts(self, draws: int) -> list[int]:
        """Draws of each source among the first ``draws``: sums to it, never falls as it grows, within 2 of exact.

        Python's integers: 2 * count * share would pass int64 at 2^31 draws. O(number of sources).
        """
        values = [0] * (self._leaves + len(self._nodes))
        values[self._root] = draws
        for node in range(len(self._nodes) - 1, -1, -1):
            left, right, share, both = self._nodes[node]
            count = values[self._leaves + node]
            part = (2 * count * share + both) // (2 * both)
            values[left] = part
            values[right] = count - part
        return values[: self._leaves]


@dataclass(frozen=True)
class _Sizes:
    sizes: Mapping[str, Size]
    unit: str

    def of(self, leaf: str, rate: RateConfig | None) -> Fraction:
        size = self.sizes[leaf]
        rows = _rated(size.rows, rate) if rate else Fraction(size.rows)
        return rows * size.tokens / size.rows if self.unit == "tokens" else rows


@dataclass(frozen=True)
class _Below:
    """What stands below a node: its size in the unit, and how its leaves share out what it has (summing to 1)."""

    size: Fraction
    leaves: dict[str, Fraction]


def _node(name: str, node: SourceConfig, sizes: _Sizes, rate: RateConfig | None) -> _Below:
    rate = node.rate or rate
    if node.sources is not None:
        return _group(name, node.sources, sizes, rate)
    return _Below(sizes.of(name, rate), {name: Fraction(1)})


def _group(path: str, nodes: Mapping[str, SourceConfig], sizes: _Sizes, rate: RateConfig | None) -> _Below:
    dotted = f"{path}." if path else ""
    children = {name: _node(dotted + name, node, sizes, rate) for name, node in nodes.items() if node.weight != 0}
    children = {name: below for name, below in children.items() if below.leaves}
    amounts = _amounts(f"data.sources.{dotted}".rstrip("."), nodes, children)
    total = sum(amounts.values())
    leaves = {
        leaf: amounts[name] / total * share for name, below in children.items() for leaf, share in below.leaves.items()
    }
    return _Below(sum((below.size for below in children.values()), Fraction(0)), leaves)


def _amounts(path: str, nodes: Mapping[str, SourceConfig], children: Mapping[str, _Below]) -> dict[str, Fraction]:
    """What siblings are weighed by: all their weights, or all their sizes. A float counts as the decimal one reads."""
    weights = {name: nodes[name].weight for name in children}
    given = {name: Fraction(repr(weight)) for name, weight in weights.items() if weight is not None}
    if not given:
        return {name: below.size for name, below in children.items()}
    if len(given) < len(weights):
        bare = ", ".join(name for name in weights if name not in given)
        raise ConfigError(
            f"{path}: {bare} has no weight but {', '.join(given)} has, and a weight cannot be compared with a number "
            "of rows; give each of them a weight, or none of them"
        )
    return given


def _rated(rows: int, rate: RateConfig) -> Fraction:
    scaled = rows * Fraction(repr(rate.scale))
    capped = scaled if rate.cap is None else min(scaled, Fraction(rate.cap))
    if rate.temperature == 1:
        return capped
    base = _DECIMAL.divide(Decimal(capped.numerator), Decimal(capped.denominator))
    return Fraction(_DECIMAL.power(base, _DECIMAL.divide(Decimal(1), Decimal(repr(rate.temperature)))))
