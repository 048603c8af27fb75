"""Lengths to rows of fixed capacity: exact finish, one pass, no row order by length.

    stream     3 9 4 4 8 2 7 5 ...                  capacity 20
    begin      [3 9 4]            gap 4             filled in stream order until the gap is small
    close      [3 9 4|4]          gap 0             one piece of length 4, or two that sum to it, from the whole window

The stream later skips a piece that closed a row. Closed rows are full; only the last row of a window is not. So the
number of rows is the lower bound ceil(tokens / capacity) where the lengths allow it, and samples stay near their
position in the stream. Some lengths do not allow it: with many samples longer than half a row, the short samples that
fit beside them are used up too early. Then best fit decreasing (Johnson 1973) is tried too, and the smaller number of
rows wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from conf.whole_numbers import ceil_div

TRIED = 64
"""Lengths tried as the first of three closing pieces before the row is closed with a gap."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` in rows whose lengths sum to at most ``capacity``; every index once, no sample split.

    Rows come in the order of their first samples, which is stream order, never by length. Never more rows than best
    fit decreasing makes. Needs 1 <= length <= capacity. About 1 us per sample; deterministic.
    """
    if not lengths:
        return []
    rows = exact_finish(lengths, capacity)
    if len(rows) > ceil_div(sum(lengths), capacity):
        return min(rows, best_fit_decreasing(lengths, capacity), key=len)
    return rows


def exact_finish(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows begun and filled in stream order, then closed with pieces of the whole window."""
    pool = _Pool(lengths, capacity)
    mean = sum(lengths) // len(lengths)
    rows: list[list[int]] = []
    while pool.tokens:
        row, gap = pool.fill(capacity, mean)
        rows.append(row + pool.close(gap))
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
    """The pieces of one window that are in no row yet, by length.

    Two integers are their index: bit l of ``present`` says that a piece of length l is left, and ``mirrored`` holds the
    same bits in reverse, so that one shift and one AND give every pair of lengths with a given sum.
    """

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.lengths, self.capacity = lengths, capacity
        self.tokens = sum(lengths)
        self.position = 0
        """Position in the stream at which the next row may begin: all pieces before it are taken."""
        self.taken = bytearray(len(lengths) + 1)
        """1 where a piece is in a row; the last byte stays 0 and ends every search."""
        self.by_length = defaultdict[int, list[int]](list)
        for index, length in zip(range(len(lengths) - 1, -1, -1), reversed(lengths), strict=True):
            self.by_length[length].append(index)
        digits = bytearray(b"0") * (capacity + 1)
        for length in self.by_length:
            digits[length] = ord("1")
        self.present, self.mirrored = int(digits[::-1], 2), int(digits, 2)

    def fill(self, gap: int, mean: int) -> tuple[list[int], int]:
        """Begin a row: at least one piece, in stream order, until ``gap`` is small. Returns the row and its gap.

        Up to two mean lengths are a gap that one or two pieces fit; below one mean it may fit none, so it stops
        before. Nine of ten samples pass here, hence the local names and ``take`` written out: the first piece of the
        stream that is left is also the earliest of its length.
        """
        lengths, by_length, taken = self.lengths, self.by_length, self.taken
        row = list[int]()
        position, tokens, near = taken.index(0, self.position), self.tokens, 2 * mean
        while tokens:
            length = lengths[position]
            if (gap <= near or gap - length < mean) and row and (tokens > gap or length > gap):
                break
            row.append(position)
            pieces = by_length[length]
            pieces.pop()
            if not pieces:
                self._gone(length)
            taken[position] = 1
            tokens -= length
            gap -= length
            position += 1
            if taken[position]:
                position = taken.index(0, position)
        self.position, self.tokens = position, tokens
        return row, gap

    def close(self, gap: int) -> list[int]:
        """Take pieces that fill ``gap``: exactly if one, two or three pieces can, else as much as possible."""
        closing = list[int]()
        while gap > 0 and self.present & ((2 << gap) - 1):
            chosen = self._one_or_two(gap) or self._three(gap) or self._nearest(gap)
            closing += [self._take(length) for length in chosen]
            gap -= sum(chosen)
        return closing

    def _take(self, length: int) -> int:
        """The earliest piece of this length."""
        pieces = self.by_length[length]
        first = pieces.pop()
        if not pieces:
            self._gone(length)
        self.taken[first] = 1
        self.tokens -= length
        return first

    def _gone(self, length: int) -> None:
        self.present ^= 1 << length
        self.mirrored ^= 1 << (self.capacity - length)

    def _count(self, length: int) -> int:
        return len(self.by_length.get(length, ()))

    def _one_or_two(self, total: int) -> tuple[int, ...]:
        """Lengths of one piece, else of two pieces, that sum to ``total``.

        Of several pairs the most even one: the shortest pieces are what the last rows of the window need.
        """
        if self.present >> total & 1:
            return (total,)
        pairs = self.present & (self.mirrored >> (self.capacity - total))
        if total % 2 == 0 and pairs >> (total // 2) & 1 and self._count(total // 2) < 2:
            pairs ^= 1 << (total // 2)
        if not pairs:
            return ()
        half = (total + 1) // 2
        upper = pairs >> half
        longer = half + (upper & -upper).bit_length() - 1
        return (longer, total - longer)

    def _three(self, total: int) -> tuple[int, ...]:
        """Lengths of three pieces that sum to ``total``, trying the longest first."""
        candidates = self.present & ((1 << total) - 1)
        for _ in range(TRIED):
            if not candidates:
                break
            length = candidates.bit_length() - 1
            candidates ^= 1 << length
            rest = self._one_or_two(total - length)
            chosen = (length, *rest)
            if rest and all(chosen.count(each) <= self._count(each) for each in chosen):
                return chosen
        return ()

    def _nearest(self, total: int) -> tuple[int, ...]:
        """The one or two lengths with the largest sum below ``total``; at least one piece must fit."""
        return next(chosen for below in range(total - 1, 0, -1) if (chosen := self._one_or_two(below)))
