"""The samples of every optimizer step: mixed, packed and dealt to ranks, as a pure function of seed, data and config.

    mixture -> windows of packed rows -> one list of global rows -> step k = the next ``global_size`` of them

Every rank walks the same list. So a run saved on one number of ranks continues on any other, and every rank knows the
number of target tokens of a step without communication. The state is a position in that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, cast

from conf.errors import ConfigError
from conf.schema import DataConfig
from conf.whole_numbers import ceil_div
from data_prep.stream.carry_over import carry_over
from data_prep.stream.forest import Forest, RowsWithPrefixes
from data_prep.stream.grouping import regrouped
from data_prep.stream.mixture import Size, check_names, fractions, leaves_of
from data_prep.stream.order import check_lengths, describe, fingerprint, order_changes, summary, window_size
from data_prep.stream.phases import Amounts, Phase, Schedule, total_draws
from data_prep.stream.steps import EMPTY, GlobalStep, Part, assemble, rank_rows
from data_prep.stream.windows import PackedRow, Place, Planner, Rows, Window

__all__ = ["EMPTY", "GlobalStep", "PackedRow", "Stream", "rank_rows"]

STATE_VERSION = 1


@dataclass(frozen=True)
class _Cursor:
    """The next row to serve: row ``offset`` of window ``index``, which begins at draw ``start`` of the run."""

    step: int = 0
    rows_done: int = 0
    index: int = 0
    start: int = 0
    offset: int = 0
    stop: int | None = None
    """The draw at which a window that was begun before a resume ends; None: the schedule decides."""


_Advance = tuple[GlobalStep | None, _Cursor, Window | None]
"""A step, or None at the end of the data; the cursor after it, and the window that is open there."""


class Stream:
    """Iterator of GlobalStep; ends with the data (``data.stop``) or after ``max_steps`` (0: no limit).

    ``splits`` maps source names to splits; of a split, ``rows``, ``lengths`` and ``targets`` are used. Raises
    ConfigError if they are not the sources of ``data``, or hold a sample longer than ``data.seq_len``.
    """

    def __init__(
        self, splits: Mapping[str, Rows], data: DataConfig, *, seed: int, global_size: int, max_steps: int = 0
    ) -> None:
        check_names(data.sources, splits)
        check_lengths(splits, data.seq_len)
        self.names = tuple(splits)
        self.changes: list[str] = []
        """What ``allow_change`` accepted when the state was loaded; for the run's record."""
        self._data, self._global_size, self._max_steps = data, global_size, max_steps
        self._rows = [split.rows for split in splits.values()]
        self.planner = Planner(splits, seed=seed, seq_len=data.seq_len, packing=data.pack)
        self.shares = data.share_prefix and data.pack == "exact"
        """Whether the samples of a row compute what they have in common once."""
        self._grouped: Callable[[Sequence[Part]], Window] | None = None
        if self.shares:
            with_prefixes = cast(Sequence[RowsWithPrefixes], list(splits.values()))
            forest = Forest.of(with_prefixes)
            if len(forest.sizes) > 1:
                self.planner.tell_prefixes([split.shared for split in with_prefixes], forest)
                self._grouped = partial(regrouped, forest=forest, capacity=data.seq_len)
        self._schedule = self._new_schedule()
        self.window_size = window_size(data, sum(self._rows), sum(self.planner.tokens))
        """Samples per window; a window may end early."""
        self._order = describe(
            splits,
            data,
            seed=seed,
            window=self.window_size,
            shares=self._schedule.at(0)[0].shares,
            limits=self._schedule.limits,
        )
        self.order_fingerprint = fingerprint(self._order)
        self._cursor = _Cursor()
        self._window: Window | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="corral-plan")
        self._ahead: Future[_Advance] | None = None
        self._retained: dict[str, int] = {}
        self._row_counts: dict[int, int] = {}

    def __iter__(self) -> Iterator[GlobalStep]:
        return self

    def __next__(self) -> GlobalStep:
        if self._max_steps and self._cursor.step >= self._max_steps:
            raise StopIteration
        ahead, self._ahead = self._ahead, None
        step, self._cursor, self._window = ahead.result() if ahead else self._advance(self._cursor, self._window)
        if step is None:
            raise StopIteration
        return step

    def look_ahead(self) -> None:
        """Make the next step in another thread: for a caller that is about to wait for its device.

        A caller that goes on computing in Python would only share its core with that thread, and gain nothing.
        """
        if self._ahead is None:
            self._ahead = self._worker.submit(self._advance, self._cursor, self._window)

    def peek(self) -> GlobalStep | None:
        """The step that comes next, which it stays; None at the end of the data. Reads past ``max_steps``."""
        self.look_ahead()
        assert self._ahead is not None
        return self._ahead.result()[0]

    def total_steps(self) -> int:
        """Steps of the whole run, those already taken included. Exact.

        Packs the remaining lengths once (about 1 s per million samples), unless ``max_steps`` certainly ends the run
        before the data.
        """
        return self._steps(self._max_steps)

    def goes_on(self) -> bool:
        """Whether the data would give a step after ``max_steps``."""
        return self._max_steps > 0 and self._steps(self._max_steps + 1) > self._max_steps

    def _steps(self, limit: int) -> int:
        """Steps of the whole run if it ended after ``limit`` of them; 0: no limit."""
        cursor = self._cursor
        most = (limit - cursor.step) * self._global_size if limit else None
        if most is not None and self._least_rows(cursor) >= most:
            return limit
        left, served = 0, cursor.offset
        for place in self.places():
            if most is not None and left >= most:
                break
            left += max(0, self._row_count(place) - served)
            served = 0
        steps = self._cursor.step + ceil_div(left, self._global_size)
        return min(steps, limit) if limit else steps

    def places(self) -> Iterator[Place]:
        """The remaining windows of the run, including the window at the cursor, without planning them."""
        cursor = self._cursor
        while (place := self._place(cursor)) is not None:
            yield place
            cursor = _Cursor(index=place.index + 1, start=place.stop)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last step that was handed out; JSON-able, the same on every rank.

        A few hundred bytes, and a line per source, at any position. A loader that fetches ahead keeps this state
        beside every step, so that a checkpoint describes the steps that were trained, not those that were fetched.
        """
        cursor = self._cursor
        place = self._place(cursor)
        return {
            "v": STATE_VERSION,
            # The order fingerprint and what it is of; checkpoints have them under these names.
            "plan_digest": self.order_fingerprint,
            "plan": self._order,
            "draws": self._draws,
            "phases": [[each.start, each.base, each.shares] for each in self._schedule.phases_from(cursor.start)],
            "retained": self._retained,
            "step": cursor.step,
            "window": cursor.index,
            "start": cursor.start,
            "stop": place.stop if place and cursor.offset else None,
            "offset": cursor.offset,
            "rows_done": cursor.rows_done,
        }

    def compare(self, state: Mapping[str, Any]) -> list[str]:
        """What differs between the order of samples of ``state`` and this one, in phrases.

        Raises ConfigError if something differs and ``data.allow_change`` is false. That the data end elsewhere
        (``data.stop``) needs no permission: more steps of a finished run are the same run.
        """
        if state.get("v") != STATE_VERSION:
            raise ConfigError(
                f"the checkpoint's data state has version {state.get('v')}, this Corral reads version {STATE_VERSION}; "
                "continue with the release that wrote it"
            )
        found = order_changes(state["plan"], self._order)
        refused = [each for each in found if not each.startswith("data.stop:")]
        if refused and not self._data.allow_change:
            raise ConfigError(
                f"the order of samples is not the one of the checkpoint ({summary(refused)}); set it back, or accept "
                "the change with data.allow_change=true"
            )
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, at any number of ranks and any ``global_size``; costs no more anywhere.

        Another order of samples is a ConfigError that says what differs; with ``data.allow_change`` it takes effect at
        the next window edge (see ``carry_over``), and every counter goes on from where it stands.
        """
        found = self.compare(state)
        self._window, self._ahead, self._row_counts, self.changes = None, None, {}, found
        self._cursor = _Cursor(
            step=state["step"],
            rows_done=state["rows_done"],
            index=state["window"],
            start=state["start"],
            offset=state["offset"],
            stop=state["stop"],
        )
        if found:
            change = carry_over(state, self._order, self._new_schedule().opening)
            self._schedule, self._retained = self._new_schedule(change.phases), change.retained
            self._cursor = replace(self._cursor, stop=state["stop"] if change.finishes_window else None)
            self.__dict__.pop("_draws", None)
        else:
            phases = [Phase(start, tuple(base), tuple(shares)) for start, base, shares in state["phases"]]
            self._schedule, self._draws = self._new_schedule(phases), state["draws"]
            self._retained = dict(state["retained"])

    def _new_schedule(self, phases: Sequence[Phase] = ()) -> Schedule:
        leaves = {leaf.name: leaf.node for leaf in leaves_of(self._data.sources)}
        limits = [leaves[name].max_epochs for name in self.names]
        return Schedule(
            self._weights,
            [None if limit is None else limit * rows for limit, rows in zip(limits, self._rows, strict=True)],
            phases,
        )

    @cached_property
    def _weights(self) -> list[Fraction]:
        sizes = {
            name: Size(rows, tokens)
            for name, rows, tokens in zip(self.names, self._rows, self.planner.tokens, strict=True)
        }
        shares = fractions(self._data.sources, sizes, self._data.unit)
        return [shares.get(name, Fraction(0)) for name in self.names]

    @cached_property
    def _draws(self) -> int:
        """Draws of the whole run."""
        amounts = Amounts(self._rows, self.planner.tokens, self.planner.tokens_between)
        return total_draws(self._data.stop, self._schedule, amounts)

    def _place(self, cursor: _Cursor) -> Place | None:
        """The window at the cursor; None at the end of the data.

        It ends early with the data, with its phase and, when only one source is left, with the epoch.
        """
        stop = cursor.stop
        if stop is None:
            phase, end = self._schedule.at(cursor.start)
            stop = min(cursor.start + self.window_size, self._draws)
            if end is not None:
                stop = min(stop, end)
            if phase.only is not None:
                rows = self._rows[phase.only]
                stop = min(stop, cursor.start + rows - phase.counts(cursor.start)[phase.only] % rows)
        if stop <= cursor.start:
            return None
        counts = self._schedule.counts
        return Place(cursor.index, cursor.start, stop, counts(cursor.start), counts(stop))

    def _least_rows(self, cursor: _Cursor) -> int:
        """The number of rows from the cursor on if every row were full: no packing needs fewer."""
        if self._data.pack == "none":
            return self._draws - cursor.start - cursor.offset
        counts = self._schedule.counts
        tokens = self.planner.tokens_between(counts(cursor.start), counts(self._draws))
        return ceil_div(tokens, self._data.seq_len) - cursor.offset

    def _row_count(self, place: Place) -> int:
        if self._window is not None and self._window.place == place:
            return self._window.rows
        if place.start not in self._row_counts:
            self._row_counts[place.start] = self.planner.count_rows(place)
        return self._row_counts[place.start]

    def _advance(self, cursor: _Cursor, window: Window | None) -> _Advance:
        """The step at ``cursor``, whose window is ``window`` if it is open. Changes nothing: any thread may call it."""
        parts, wanted = list[Part](), self._global_size
        while wanted:
            if window is None:
                place = self._place(cursor)
                if place is None:
                    break
                window = self.planner.plan(place)
            first = min(cursor.offset, window.rows)
            last = min(first + wanted, window.rows)
            if last > first:
                parts.append(Part(window, first, last))
            wanted -= last - first
            cursor = replace(cursor, offset=last, rows_done=cursor.rows_done + last - first)
            if last == window.rows:
                cursor = replace(cursor, index=cursor.index + 1, start=window.place.stop, offset=0, stop=None)
                window = None
        if not parts:
            return None, cursor, window
        number, size = cursor.step, self._global_size
        step = assemble(number, parts, source_rows=self._rows, global_size=size, grouped=self._grouped)
        return step, replace(cursor, step=step.index + 1), window
