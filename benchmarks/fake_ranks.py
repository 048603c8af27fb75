"""The ranks of a fake cluster in one process: each runs Corral's own functions in turn, and what it spends is counted.

A rank runs until it reaches a collective and leaves its value there, pickled; when all have, each takes what the real
group would give it and runs on. One rank runs at a time, so the time of a stretch is that rank's own.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import mock

from train.checkpoint import check, commit, layout
from train.ranks.group import Ranks

T = TypeVar("T")

LOCAL_WORLD = 8
"""Ranks per node."""
STACK_BYTES = 1 << 20


@dataclass
class Spent:
    """What one rank has spent."""

    seconds: float = 0.0
    """CPU time of the process while this rank ran: nothing that waits, for another rank, a disk or other processes."""
    opens: int = 0
    """Files and folders opened, and folders listed."""
    watched: bool = True
    received: int = 0
    """Bytes of pickled objects that collectives brought, padded as torch's gathers pad them."""
    hashed: int = 0
    """Bytes of files that were read to compute a sum."""
    peak: int = 0
    """Largest number of bytes that Python and numpy held at once for this rank; 0 where memory was not traced."""
    kept: int = 0


_now: Spent | None = None
"""Of the rank that is running."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _now is not None and event in ("open", "os.listdir", "os.scandir"):
        _now.opens += 1


_hooked: list[bool] = []


@contextmanager
def counting() -> Iterator[None]:
    """Count opens as strace does: Python's by an audit hook, those of safetensors, which is Rust, by its calls.

    An unwatched rank writes zeros in place of its tensors, as many bytes as the watched one before it.
    """
    if not _hooked:
        sys.addaudithook(_audit)  # cannot be removed; it counts only while a rank runs
        _hooked.append(True)

    def opening(function: Callable[..., Any], opens: int) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if _now is not None:
                _now.opens += opens
            return function(*given, **named)

        return call

    def hashing(path: Path) -> str:
        if _now is not None:
            _now.hashed += path.stat().st_size
        return sha256_of(path)

    def writing(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        kind = path.name.split("-")[0]
        if _now is None or _now.watched:
            written[kind] = write_tensors(path, tensors)
            if _now is not None:
                _now.hashed += written[kind]["bytes"]
            return written[kind]
        size = written[kind]["bytes"]
        with path.open("wb") as file:
            file.truncate(size)
        if size not in zeros:
            zeros[size] = {"bytes": size, "sha256": sha256_of(path)}
        return zeros[size]

    written: dict[str, dict[str, Any]] = {}
    zeros: dict[int, dict[str, Any]] = {}
    sha256_of, write_tensors = check.sha256_of, commit.write_tensors
    with (
        # The header is read by Rust, the tensors are mapped by torch, which opens the file again.
        mock.patch.object(layout, "safe_open", opening(layout.safe_open, 2)),
        mock.patch.object(commit, "write_tensors", writing),
        mock.patch.object(check, "sha256_of", hashing),
    ):
        yield


@contextmanager
def spending() -> Iterator[Spent]:
    """What the block spends, as one process."""
    global _now
    spent = Spent()
    with counting():
        _now, began = spent, time.process_time()
        try:
            yield spent
        finally:
            _now = None
            spent.seconds = time.process_time() - began


@dataclass
class _Box:
    """What the ranks left at one collective."""

    blobs: dict[int, bytes] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)
    """What the unwatched ranks take: unpickled once, so that the cost of 4,096 ranks is not paid 4,096 times here."""


class FakeGroup(Generic[T]):
    """``world`` ranks, of which ``driven`` run; the value of the last of these stands for the ranks that do not.

    ``watched``: the ranks that unpickle for themselves what they receive, as real ranks do.
    """

    def __init__(self, world: int, *, driven: Sequence[int] | None = None, trace: bool = False) -> None:
        self.world = world
        self.driven = list(range(world)) if driven is None else sorted(set(driven))
        self.watched = set(watched(world))
        self.spent = {rank: Spent(watched=rank in self.watched) for rank in self.driven}
        self._trace = trace
        self._box = _Box()
        self._go = {rank: threading.Semaphore(0) for rank in self.driven}
        self._paused = threading.Semaphore(0)
        self._results: dict[int, T] = {}
        self._failure: BaseException | None = None
        self._began, self._held = 0.0, 0

    def run(self, body: Callable[[Ranks], T]) -> dict[int, T]:
        """What ``body`` returns on every driven rank. The first exception of a rank is raised here."""
        before = threading.stack_size(STACK_BYTES)
        threads = [threading.Thread(target=self._live, args=(body, rank), daemon=True) for rank in self.driven]
        for thread in threads:
            thread.start()
        threading.stack_size(before)
        gc.collect()
        if self._trace:
            tracemalloc.start()
        with counting():
            while len(self._results) < len(self.driven):
                self._box, ended = _Box(), len(self._results)
                for rank in self.driven:
                    self._go[rank].release()
                    self._paused.acquire()
                    if self._failure is not None:
                        raise self._failure
                assert len(self._results) - ended in (0, len(self.driven)), "some ranks ended, others wait for them"
        if self._trace:
            tracemalloc.stop()
        return self._results

    def _live(self, body: Callable[[Ranks], T], rank: int) -> None:
        self._go[rank].acquire()
        self._resume(rank)
        try:
            self._results[rank] = body(self._ranks(rank))
        except BaseException as error:
            self._failure = error
        self._pause(rank)

    def _ranks(self, rank: int) -> Ranks:
        return FakeRanks(
            rank=rank, world=self.world, local_rank=rank % LOCAL_WORLD, local_world=LOCAL_WORLD, group=self
        )

    def _resume(self, rank: int) -> None:
        global _now
        if self._trace:
            tracemalloc.reset_peak()
            self._held = tracemalloc.get_traced_memory()[0]
        _now = self.spent[rank]
        self._began = time.process_time()

    def _pause(self, rank: int) -> None:
        global _now
        _now = None
        spent = self.spent[rank]
        spent.seconds += time.process_time() - self._began
        if self._trace:
            held, peak = tracemalloc.get_traced_memory()
            spent.peak = max(spent.peak, spent.kept + peak - self._held)
            spent.kept += held - self._held
        self._paused.release()

    def meet(self, rank: int, blob: bytes) -> _Box:
        """Leave ``blob`` and wait until every rank has left its own."""
        box = self._box
        box.blobs[rank] = blob
        self._pause(rank)
        self._go[rank].acquire()
        self._resume(rank)
        return box

    def take(self, box: _Box, rank: int, sources: Sequence[int]) -> list[Any]:
        """The values of ``sources``, which torch pads to the largest."""
        self.spent[rank].received += len(sources) * max(len(self._blob(box, source)) for source in sources)
        return self.load(box, rank, sources)

    def count(self, box: _Box, rank: int, sources: Sequence[int]) -> None:
        """Note that the values of ``sources`` came to ``rank``."""
        self.spent[rank].received += sum(len(self._blob(box, source)) for source in sources)

    def load(self, box: _Box, rank: int, sources: Sequence[int]) -> list[Any]:
        """The values of ``sources``."""
        if rank in self.watched:
            return [pickle.loads(self._blob(box, source)) for source in sources]
        key = (sources[0], len(sources))
        if key not in box.shared:
            box.shared[key] = [pickle.loads(self._blob(box, source)) for source in sources]
        return list(box.shared[key])

    def _blob(self, box: _Box, source: int) -> bytes:
        return box.blobs.get(source, box.blobs[self.driven[-1]])


@dataclass(frozen=True)
class FakeRanks(Ranks):
    """One rank of a fake group: objects travel through the group, and ``once`` and ``together`` are the real ones."""

    group: FakeGroup[Any] = field(kw_only=True)

    def barrier(self) -> None:
        self.group.meet(self.rank, b"")

    def sum(self, values: list[float]) -> list[float]:
        box = self.group.meet(self.rank, pickle.dumps(values))
        found = self.group.take(box, self.rank, range(self.world))
        return [float(sum(column)) for column in zip(*found, strict=True)]

    def broadcast(self, value: T, source: int = 0) -> T:
        box = self.group.meet(self.rank, pickle.dumps(value) if self.rank == source else b"")
        return self.group.take(box, self.rank, [source])[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        return self.group.take(self.group.meet(self.rank, pickle.dumps(value)), self.rank, range(self.world))

    def collect(self, value: T) -> list[T]:
        box = self.group.meet(self.rank, pickle.dumps(value))
        below = self.rank & -self.rank or self.world  # the ranks whose values come to this one, its own included
        self.group.count(box, self.rank, range(self.rank + 1, min(self.rank + below, self.world)))
        return self.group.load(box, self.rank, range(self.world)) if self.is_main else []


def watched(world: int) -> tuple[int, ...]:
    """The ranks whose costs are reported: the first, the second, the first of the last node and the last.

    All others do what the second does, on data of the same size.
    """
    return tuple(sorted({0, 1, max(0, world - LOCAL_WORLD), world - 1}))


def free_memory_folder() -> str | None:
    """A folder in memory, so that figures are not those of a disk; None: where temporary files are."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
