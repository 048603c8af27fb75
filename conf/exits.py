"""How a run ended, on disk: one file per attempt and rank, reduced by cause to ``exit.json``.

torchrun always exits 1 on failure and SLURM may report 0 after a node failure, so the truth is kept in files. A rank
that left no file died without a word (killed), which counts as a distributed failure.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# Most telling cause first: a rank that saw bad data explains the peers that then lost their connection (76).
CAUSES = (78, 66, 65, 77, 73, 71, 69, 74, 70, 75, 76, 0)


@dataclass(frozen=True)
class ExitRecord:
    code: int
    reason: str
    """One sentence."""
    step: int
    """Last completed optimizer step."""
    hint: str
    """What to do next; empty for code 0."""
    attempt: int


def write_json(path: Path, content: object) -> None:
    """Replace ``path`` at once: a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def rank_file(run_dir: Path, attempt: int, rank: int) -> Path:
    return run_dir / "exit" / f"attempt-{attempt}-rank-{rank}.json"


def next_attempt(run_dir: Path) -> int:
    """Number of the attempt that starts now: one more than the last that left a mark, 0 on a fresh folder."""
    marks = [int(path.name.split("-")[1]) for path in (run_dir / "exit").glob("attempt-*-*")]
    return max(marks, default=-1) + 1


def mark_start(run_dir: Path, attempt: int) -> None:
    """Leave a mark for ``next_attempt`` even if every rank is killed later."""
    write_json(run_dir / "exit" / f"attempt-{attempt}-start.json", {"time": time.time()})


def write_rank_exit(run_dir: Path, rank: int, record: ExitRecord) -> None:
    write_json(rank_file(run_dir, record.attempt, rank), {**asdict(record), "rank": rank, "time": time.time()})


def _read(path: Path) -> ExitRecord:
    found = json.loads(path.read_text())
    return ExitRecord(**{key: found[key] for key in ("code", "reason", "step", "hint", "attempt")})


def _by_cause(run_dir: Path, records: list[ExitRecord]) -> ExitRecord:
    """Write and return the most telling record, with the furthest step any rank reached."""
    first = min(records, key=lambda each: CAUSES.index(each.code) if each.code in CAUSES else -1)
    record = ExitRecord(first.code, first.reason, max(each.step for each in records), first.hint, first.attempt)
    write_json(run_dir / "exit.json", asdict(record))
    return record


def merge_exits(run_dir: Path, attempt: int) -> ExitRecord:
    """``exit.json`` from the ranks that have left so far; what a run without a supervisor can know."""
    return _by_cause(run_dir, [_read(path) for path in sorted(run_dir.glob(f"exit/attempt-{attempt}-rank-*.json"))])


def reduce_exits(run_dir: Path, attempt: int, world: int) -> ExitRecord:
    """``exit.json`` after all ``world`` ranks of an attempt have gone; a rank without a file died (76)."""
    records = []
    for rank in range(world):
        path = rank_file(run_dir, attempt, rank)
        died = ExitRecord(76, f"rank {rank} died without a word", 0, "see logs/ and the kernel's log", attempt)
        records.append(_read(path) if path.is_file() else died)
    return _by_cause(run_dir, records)
