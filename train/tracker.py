"""Where a run's metrics, events and notes go. ``metrics.jsonl`` is the truth; terminal and W&B are views of it.

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

from conf.errors import StorageError
from conf.schema import RunConfig
from train.distributed import Ranks
from train.terminal import TerminalTracker
from train.wandb_tracker import WandbTracker


class Tracker(Protocol):
    """A sink of what happens in a run. No method may hold training up for more than a second."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of optimizer step ``step`` (0: before the first), names as in the README's reference."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something that happened once: start, resume, checkpoint, skip, signal, restart, end; pass ``step=``."""

    def note(self, text: str) -> None:
        """One line for the person who watches."""

    def sync(self) -> None:
        """Everything logged so far is on disk when this returns; called with each checkpoint."""

    def close(self, code: int) -> None:
        """The run ends with exit code ``code``; the tracker is not used afterwards."""


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
    """``metrics.jsonl``, one object per step, and ``events.jsonl``. Both only grow, each addition in one write.

    Raises StorageError if the disk takes no more: a run without its record is not worth its time.
    """

    def __init__(self, run_dir: Path) -> None:
        self.metrics = open_at_end(run_dir / "metrics.jsonl")
        self.events = open_at_end(run_dir / "events.jsonl")
        self.last_step = step_of_last_line(self.metrics)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics that come later in the same step (evaluation, checkpoint) extend the object of that step."""
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
    """Hands everything to several trackers in order; ``close`` reaches all of them even if one fails."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def event(self, kind: str, **fields: Any) -> None:
        for tracker in self.trackers:
            tracker.event(kind, **fields)

    def note(self, text: str) -> None:
        for tracker in self.trackers:
            tracker.note(text)

    def sync(self) -> None:
        for tracker in self.trackers:
            tracker.sync()

    def close(self, code: int) -> None:
        with ExitStack() as stack:
            for tracker in self.trackers:  # the stack unwinds backwards: W&B first, the terminal last
                stack.callback(tracker.close, code)


def trackers(cfg: RunConfig, run_dir: Path, ranks: Ranks, total_steps: int, config_dict: Mapping[str, Any]) -> Tracker:
    """The trackers of this process: files, terminal and W&B on rank 0, nothing on the others.

    ``total_steps``: optimizer steps of the whole run. ``config_dict``: the resolved config; W&B gets it redacted.
    """
    if not ranks.is_main:
        return NullTracker()
    terminal = TerminalTracker(total_steps)
    parts: list[Tracker] = [terminal, JsonlTracker(run_dir)]
    if cfg.tracker.wandb != "disabled":
        parts.append(WandbTracker(run_dir, cfg.name, cfg.tracker, config_dict, terminal.note))
    return Fanout(parts)


def truncate_after(path: Path, step: int) -> int:
    """Remove the objects of a JSON-lines file whose ``step`` is above ``step``; returns how many lines went.

    Lines without a step stay; a line cut off by a crash goes. The file is replaced at once or not at all. Used on
    resume, so that each step stands once.
    """
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if keeps(line, step)]
    if len(kept) < len(lines):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return len(lines) - len(kept)


def keeps(line: bytes, step: int) -> bool:
    """Whether a line is whole and not beyond ``step``."""
    try:
        content = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(content, dict) and content.get("step", 0) <= step


def open_at_end(path: Path) -> BinaryIO:
    """``path`` without buffer, at its end, on a line of its own even if the last writer was killed inside a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    file = path.open("r+b", buffering=0)
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            write(file, "\n")
    return file


def write(file: BinaryIO, text: str) -> None:
    try:
        file.write(text.encode())
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"{file.name} cannot be written ({why}); free some space and resume") from error


def step_of_last_line(file: BinaryIO) -> int | None:
    """The step of the last object of a file that ``open_at_end`` opened; None if there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, 1 << 20), os.SEEK_END)
    lines = file.read().splitlines()
    try:
        return int(json.loads(lines[-1])["step"]) if lines else None
    except (ValueError, KeyError, TypeError):
        return None


def finite(value: float) -> float | None:
    """``value``, or None where JSON has no number for it (NaN, infinity)."""
    return value if math.isfinite(value) else None
