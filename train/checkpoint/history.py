"""Whether a run had checkpoints: what its folder holds, and what its records say of those it no longer holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def has_history(run_dir: Path) -> bool:
    """Whether the folder of checkpoints shows that one was published, good or not."""
    folder = run_dir / "checkpoints"
    return (folder / "LATEST").exists() or any(folder.glob("step-*")) or any(folder.glob(".corrupt-*"))


def published_before(run_dir: Path) -> str:
    """What the records say of published checkpoints, as the end of a sentence; empty text if nothing.

    A run that was killed before its first checkpoint has records too, and begins again at step 0.
    """
    events = run_dir / "events.jsonl"
    told = False
    for event in _objects(events):
        told = True
        if event.get("kind") in ("checkpoint", "resume") and event.get("step"):
            return f"{events.name} says that there was one at step {event['step']}"
    for steps in (run_dir / "ledger.jsonl", run_dir / "metrics.jsonl"):
        if not told and next(_objects(steps), None):
            gone = "is empty or damaged" if events.exists() else "is gone"
            return f"{steps.name} has steps, while {events.name}, which would say whether there was one, {gone}"
    return ""


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that a crash cut off or a disk damaged is skipped."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content
