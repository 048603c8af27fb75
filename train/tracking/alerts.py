"""Which events of a run W&B mails or posts to people, and how often."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from conf.exits import CHECKPOINTED
from conf.safety.secrets import redact

WAIT_S = 600.0
"""Between two alerts of one title. W&B is told too, because every attempt of a run counts anew here."""
FAILED_BEFORE_ALERT = 2
"""One failed checkpoint or copy may be a hiccup of the file system."""

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True)
class Alert:
    title: str
    """At most 64 characters."""
    text: str
    level: Level


def _settings(fields: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {old} -> {new}" for key, (old, new) in fields["changed"].items())


KINDS: Mapping[str, tuple[Level, str, Callable[[Mapping[str, Any]], str]]] = {
    "checkpoint_failed": ("ERROR", "Checkpoints fail", lambda of: f"step {of['step']}: {of['reason']}"),
    "copy_failed": ("WARN", "Copies of checkpoints fail", lambda of: f"step {of['step']}: {of['reason']}"),
    "fallback": ("WARN", "A checkpoint was passed over", lambda of: f"step {of['step']}: {of['reason']}"),
    "hang": ("ERROR", "A rank hung", lambda of: str(of["text"])),
    "skip": ("WARN", "A step made no update", lambda of: f"step {of['step']}: gradient norm {of['grad_norm']}"),
    "rollback": (
        "WARN",
        "The run went back",
        lambda of: f"from step {of['step']} to step {of['to']}",
    ),
    "config_changed": ("INFO", "Settings changed", _settings),
    "data_changed": ("INFO", "The order of samples changed", lambda of: "; ".join(of["changed"])),
    "end": ("INFO", "The run has finished", lambda of: f"after step {of['step']}"),
}
"""Kind of event -> level, title, text."""
ENDS_ROW = {"checkpoint": "checkpoint_failed", "copy": "copy_failed"}
"""An event that ends a row of failures."""


@dataclass
class Alerts:
    """The alerts of one attempt of a run."""

    clock: Callable[[], float] = time.monotonic
    _row: dict[str, int] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _held_back: dict[str, int] = field(default_factory=dict)

    def of_event(self, kind: str, fields: Mapping[str, Any]) -> Alert | None:
        """The alert that an event deserves now, if any."""
        if kind in ENDS_ROW:
            self._row.pop(ENDS_ROW[kind], None)
        if kind not in KINDS:
            return None
        level, title, text = KINDS[kind]
        said = text(fields)
        if kind in ENDS_ROW.values():
            self._row[kind] = self._row.get(kind, 0) + 1
            if self._row[kind] < FAILED_BEFORE_ALERT:
                return None
            said = f"{self._row[kind]} in a row, the last of {said}"
        return self._limited(level, title, said)

    def of_ending(self, code: int, run_dir: Path) -> Alert | None:
        """The alert of a run that leaves with ``code``; a success is an event of its own."""
        if not code:
            return None
        try:  # written before anything is closed
            reason = str(json.loads((run_dir / "exit.json").read_text(encoding="utf-8"))["reason"])
        except (OSError, ValueError, LookupError, TypeError):
            reason = f"exit code {code}"
        if code == CHECKPOINTED:
            return self._limited("WARN", "The run was stopped and wants to be started again", reason)
        return self._limited("ERROR", f"The run failed (exit code {code})", reason)

    def _limited(self, level: Level, title: str, text: str) -> Alert | None:
        now = self.clock()
        if now - self._last.get(title, -WAIT_S) < WAIT_S:
            self._held_back[title] = self._held_back.get(title, 0) + 1
            return None
        self._last[title] = now
        more = self._held_back.pop(title, 0)
        return Alert(title, redact(text) + (f" (and {more} times before, since the last alert)" if more else ""), level)


def before_start(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and fields of what happened when nobody tracked: checkpoints that this start has passed over, and the hang
    that ended the attempt before."""
    found: list[dict[str, Any]] = []
    try:
        lines = (run_dir / "events.jsonl").read_bytes().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # a crash cut it off
            continue
        kind = event.get("kind") if isinstance(event, dict) else None
        if kind in ("start", "resume"):
            break
        if kind in ("fallback", "hang"):
            found.append(event)
    for event in reversed(found):
        yield event["kind"], event
