"""Records a run's metrics, events and notes. ``metrics.jsonl`` is the truth; terminal and W&B are views of it.

Only rank 0 tracks.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from conf.durable import commit, opened
from conf.errors import StorageError
from conf.foreign.json_file import object_in
from conf.safety.secrets import redact
from conf.schema import RunConfig
from train.ranks.group import Ranks
from train.tracking.terminal import TerminalTracker
from train.tracking.wandb_tracker import WandbTracker
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart


class Tracker(Protocol):
    """A sink of metrics, events and notes. No method may delay training by more than a second."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of optimizer step ``step`` (0: before the first step); the README lists their names."""

    def event(self, kind: str, **fields: Any) -> None:
        """Record a single event: start, resume, checkpoint, skip, signal, restart, end; pass ``step=``."""

    def note(self, text: str) -> None:
        """Show one line to the user."""

    def sync(self) -> None:
        """Write everything logged so far to disk before returning; a checkpoint calls this."""

    def close(self, code: int) -> None:
        """End the run with exit code ``code``; nothing uses the tracker afterwards."""


class NullTracker:
    """The tracker of the ranks that do not track."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def event(self, kind: str, **fields: Any) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self, code: int) -> None:
        pass


class JsonlTracker:
    """``metrics.jsonl``, one object per step, and ``events.jsonl``. Both files only grow, by one write per addition.

    Raises StorageError if a write fails, for example on a full disk: a run without its record is useless.
    """

    def __init__(self, run_dir: Path) -> None:
        self.metrics = open_at_end(run_dir / "metrics.jsonl")
        self.events = open_at_end(run_dir / "events.jsonl")
        self.last_step = step_of_last_line(self.metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Later metrics of the same step (evaluation, checkpoint) extend the object of that step."""
        if not metrics:
            return
        values = json.dumps({name: finite(value) for name, value in metrics.items()}, allow_nan=False)[1:]
        if step == self.last_step:
            self.metrics.seek(-len(b"}\n"), os.SEEK_END)
            write(self.metrics, f", {values}\n")
        else:
            write(self.metrics, f'{{"step": {step}, {values}\n')
        self.last_step = step

    def event(self, kind: str, **fields: Any) -> None:
        write(self.events, json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}) + "\n")

    def note(self, text: str) -> None:
        pass

    def sync(self) -> None:
        for file in (self.metrics, self.events):
            os.fsync(file.fileno())

    def close(self, code: int) -> None:
        self.sync()
        self.metrics.close()
        self.events.close()


class Fanout:
    """Passes everything to several trackers in order, without secrets; ``close`` reaches all, also after one fails."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def event(self, kind: str, **fields: Any) -> None:
        without_secrets = redact(fields)
        for tracker in self.trackers:
            tracker.event(kind, **without_secrets)

    def note(self, text: str) -> None:
        for tracker in self.trackers:
            tracker.note(text)

    def sync(self) -> None:
        for tracker in self.trackers:
            tracker.sync()

    def close(self, code: int) -> None:
        heart.enter_alone(Phase.END)
        with ExitStack() as stack:
            for tracker in self.trackers:  # the stack closes in reverse order: W&B first, the terminal last
                stack.callback(tracker.close, code)


def trackers(cfg: RunConfig, run_dir: Path, ranks: Ranks, total_steps: int, config_dict: Mapping[str, Any]) -> Tracker:
    """The trackers of this process: files, terminal and W&B on rank 0, nothing on the others.

    ``total_steps``: optimizer steps of the whole run. ``config_dict``: the config as records keep it.
    """
    if not ranks.is_main:
        return NullTracker()
    terminal = TerminalTracker(total_steps)
    parts: list[Tracker] = [terminal, JsonlTracker(run_dir)]
    if cfg.tracker.wandb != "disabled":
        parts.append(WandbTracker(run_dir, cfg.name, cfg.tracker, config_dict, terminal.note))
    return Fanout(parts)


def truncate_after(path: Path, step: int) -> int:
    """Remove the objects of a JSON-lines file whose ``step`` is above ``step``; return the number of removed lines.

    Lines without a step stay; a line that a crash cut off is removed. The file is replaced atomically. A resume calls
    this, so that every step has one line.
    """
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if keeps(line, step)]
    if len(kept) < len(lines):
        commit(path, b"".join(kept))
    return len(lines) - len(kept)


def keeps(line: bytes, step: int) -> bool:
    """Whether ``line`` is complete and not after ``step``."""
    content = object_in(line)
    at = content.get("step", 0)
    return line.endswith(b"\n") and bool(content) and isinstance(at, int) and at <= step


def open_at_end(path: Path) -> BinaryIO:
    """Open ``path`` unbuffered at its end, and begin a new line if the last writer was killed inside a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened(path, "ab").close()
    file = opened(path, "r+b", buffering=0)
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            write(file, "\n")
    return file


def write(file: BinaryIO, text: str) -> None:
    rest = text.encode()
    try:
        while rest:
            rest = rest[file.write(rest) :]  # a disk with some room left takes a part, and says so by this number alone
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {file.name}: {why}; free some space and resume") from error


def step_of_last_line(file: BinaryIO) -> int | None:
    """The step of the last object of a file from ``open_at_end``; None without such an object."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, 1 << 20), os.SEEK_END)
    lines = file.read().splitlines()
    step = object_in(lines[-1]).get("step") if lines else None
    return step if isinstance(step, int) else None


def finite(value: float) -> float | None:
    """``value``; None for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None
