"""Lengths to rows of fixed capacity: exact finish, one pass, no row order by length.

    stream     3 9 4 4 8 2 7 5 ...                  capacity 20
    begin      [3 9 4]            gap 4             filled in stream order until the gap is small
    close      [3 9 4|4]          gap 0             one piece of length 4, or two that sum to it, from the whole window

The stream later skips a piece that closed a row. Closed rows are full; only the last row of a window is not. So the
number of rows is the lower bound ceil(tokens / capacity) where the lengths allow it, and samples stay near their
position in the stream. Some lengths do not allow it: with many samples longer than half a row, the short samples that
fit beside them are used up too early. Then best fit decreasing (Johnson 1973) is tried too, and the smaller number of
rows wins.

With shared prefixes a sample costs the tokens after its prefix, and a row pays for a prefix once, with the first sample
that has it. Rows are closed with pieces whose prefix is already paid, so their costs add up as before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conf.whole_numbers import ceil_div

TRIED = 64
"""Lengths tried as the first of three closing pieces before the row is closed with a gap."""


@dataclass(frozen=True)
class Shared:
    """The prefixes that samples of a row may share."""

    groups: Sequence[int]
    """Number of the prefix of every sample; 0: none."""
    sizes: Sequence[int]
    """Tokens of every prefix, by its number; ``sizes[0]`` is 0."""


def pack(lengths: Sequence[int], capacity: int, shared: Shared | None = None) -> list[list[int]]:
    """Indices of ``lengths`` in rows whose lengths sum to at most ``capacity``; every index once, no sample split.

    Rows come in the order of their first samples, which is stream order, never by length. Never more rows than best
    fit decreasing makes. Needs 1 <= length <= capacity. About 1 us per sample; deterministic. With ``shared``, lengths
    are without the prefixes, which count once per row.
    """
    if not lengths:
        return []
    rows = exact_finish(lengths, capacity, shared)
    if shared is None and len(rows) > ceil_div(sum(lengths), capacity):
        return min(rows, best_fit_decreasing(lengths, capacity), key=len)
    return rows


def exact_finish(lengths: Sequence[int], capacity: int, shared: Shared | None = None) -> list[list[int]]:
    """Rows begun and filled in stream order, then closed with pieces of the whole window."""
    pool = _Pool(lengths, capacity, shared or Shared([0] * len(lengths), [0]))
    mean = sum(lengths) // len(lengths)
    rows: list[list[int]] = []
    while pool.tokens:
        row, gap, paid = pool.fill(capacity, mean)
        rows.append(row + pool.close(gap, paid))
    return rows


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The longest sample first, each into the row with the least room that it fits; rows put back in stream order."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit r: some row has room r left
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            rooms ^= 0 if by_room[room] else 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        by_room.setdefault(room - length, []).append(row)
        rooms |= 1 << (room - length)
    return sorted(sorted(row) for row in rows)


class _Pool:
    """The pieces of one window that are in no row yet, by prefix and length.

    Two integers are the index of a prefix: bit l of ``present`` says that a piece of length l is left, and ``mirrored``
    holds the same bits in reverse, so that one shift and one AND give every pair of lengths with a given sum.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, shared: Shared) -> None:
        self.lengths, self.groups, self.sizes = lengths, shared.groups, shared.sizes
        self.capacity = capacity
        self.tokens = sum(lengths)
        self.position = 0
        """Position in the stream at which the next row may begin: all pieces before it are taken."""
        self.taken = bytearray(len(lengths) + 1)
        """1 where a piece is in a row; the last byte stays 0 and ends every search."""
        self.by_length = [defaultdict[int, list[int]](list) for _ in shared.sizes]
        for index, length, group in zip(
            range(len(lengths) - 1, -1, -1), reversed(lengths), reversed(shared.groups), strict=True
        ):
            self.by_length[group][length].append(index)
        self.present, self.mirrored = map(list, zip(*map(self._bits, self.by_length), strict=True))

    def _bits(self, lengths: Iterable[int]) -> tuple[int, int]:
        """``present`` and ``mirrored`` of these lengths."""
        digits = bytearray(b"0") * (self.capacity + 1)
        for length in lengths:
            digits[length] = ord("1")
        return int(digits[::-1], 2), int(digits, 2)

    def fill(self, gap: int, mean: int) -> tuple[list[int], int, set[int]]:
        """Begin a row: at least one piece, in stream order, until ``gap`` is small. Returns row, gap and prefixes.

        Up to two mean lengths are a gap that one or two pieces fit; below one mean it may fit none, so it stops
        before. Nine of ten samples pass here, hence the local names and ``take`` written out: the first piece of the
        stream that is left is also the earliest of its prefix and length.
        """
        lengths, groups, by_length, taken = self.lengths, self.groups, self.by_length, self.taken
        row, paid = list[int](), {0}
        position, tokens, near = taken.index(0, self.position), self.tokens, 2 * mean
        while tokens:
            length, group = lengths[position], groups[position]
            cost = length if group in paid else length + self.sizes[group]
            if (gap <= near or gap - cost < mean) and row and (tokens > gap or cost > gap):
                break
            paid.add(group)
            row.append(position)
            pieces = by_length[group][length]
            pieces.pop()
            if not pieces:
                self._gone(group, length)
            taken[position] = 1
            tokens -= length
            gap -= cost
            position += 1
            if taken[position]:
                position = taken.index(0, position)
        self.position, self.tokens = position, tokens
        return row, gap, paid

    def close(self, gap: int, paid: Iterable[int]) -> list[int]:
        """Take pieces that fill ``gap``: exactly if one, two or three pieces can, else as much as possible."""
        groups, closing = sorted(paid), list[int]()
        while gap > 0:
            left = _Left(self, groups)
            if not left.present & ((2 << gap) - 1):
                break
            chosen = left.one_or_two(gap) or left.three(gap) or left.nearest(gap)
            closing += [self._take(length, groups) for length in chosen]
            gap -= sum(chosen)
        return closing

    def _take(self, length: int, groups: Sequence[int]) -> int:
        """The earliest piece of this length with one of these prefixes."""
        first, chosen = len(self.lengths), groups[0]
        for group in groups:
            pieces = self.by_length[group].get(length)
            if pieces and pieces[-1] < first:
                first, chosen = pieces[-1], group
        pieces = self.by_length[chosen][length]
        pieces.pop()
        if not pieces:
            self._gone(chosen, length)
        self.taken[first] = 1
        self.tokens -= length
        return first

    def _gone(self, group: int, length: int) -> None:
        self.present[group] ^= 1 << length
        self.mirrored[group] ^= 1 << (self.capacity - length)


class _Left:
    """The lengths of a pool's pieces with given prefixes, and the search for lengths with a given sum."""

    def __init__(self, pool: _Pool, groups: Sequence[int]) -> None:
        self.capacity = pool.capacity
        self.pieces = [pool.by_length[group] for group in groups]
        self.present = self.mirrored = 0
        for group in groups:
            self.present |= pool.present[group]
            self.mirrored |= pool.mirrored[group]

    def count(self, length: int) -> int:
        return sum(len(each.get(length, ())) for each in self.pieces)

    def one_or_two(self, total: int) -> tuple[int, ...]:
        """Lengths of one piece, else of two pieces, that sum to ``total``.

        Of several pairs the most even one: the shortest pieces are what the last rows of the window need.
        """
        if self.present >> total & 1:
            return (total,)
        pairs = self.present & (self.mirrored >> (self.capacity - total))
        if total % 2 == 0 and pairs >> (total // 2) & 1 and self.count(total // 2) < 2:
            pairs ^= 1 << (total // 2)
        if not pairs:
            return ()
        half = (total + 1) // 2
        upper = pairs >> half
        longer = half + (upper & -upper).bit_length() - 1
        return (longer, total - longer)

    def three(self, total: int) -> tuple[int, ...]:
        """Lengths of three pieces that sum to ``total``, trying the longest first."""
        candidates = self.present & ((1 << total) - 1)
        for _ in range(TRIED):
            if not candidates:
                break
            length = candidates.bit_length() - 1
            candidates ^= 1 << length
            rest = self.one_or_two(total - length)
            chosen = (length, *rest)
            if rest and all(chosen.count(each) <= self.count(each) for each in chosen):
                return chosen
        return ()

    def nearest(self, total: int) -> tuple[int, ...]:
        """The one or two lengths with the largest sum below ``total``; at least one piece must fit."""
        return next(chosen for below in range(total - 1, 0, -1) if (chosen := self.one_or_two(below)))
