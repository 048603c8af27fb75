"""How a run ended, on disk: one file per attempt and rank, reduced to the first failure in ``exit.json``.

torchrun always exits with 1 on failure, and SLURM may report 0 after a node failure, so every rank writes how it ended
into a file before it leaves. A rank without a file was killed, which counts as a distributed failure. Records are
flushed to the disk, and a full disk still takes them: ``reserve`` holds their space from the start.

Without a launcher the ranks write ``exit.json`` themselves, on hundreds of ranks without reading hundreds of files: the
first rank to end with a code links its file as ``attempt-N-first-CODE``, which only one can, and merges these links. A
failure of one rank among many is the first with its code, so it is never missed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conf.attempts.owner import owner_of, successor
from conf.durable import LockHeld, beside, flushed, opened, publish, take_lock
from conf.foreign.json_file import object_if_there
from conf.safety.secrets import redact

LAUNCHED = "CORRAL_ATTEMPT"
"""The variable with which a launcher gives its ranks the number of their attempt."""
RESERVED_BYTES = 4096
KINDS = {"code": int, "reason": str, "step": int, "hint": str, "attempt": int}
"""Of the values of an ExitRecord in a file; one of another kind was not written by a rank."""
LOST_PEER, CHECKPOINTED, CANNOT_CREATE, UNNAMED = 76, 75, 73, 70


@dataclass(frozen=True)
class ExitRecord:
    code: int
    reason: str
    """One sentence."""
    step: int
    """Last completed optimizer step."""
    hint: str
    """What the user should do next; empty for code 0."""
    attempt: int


@dataclass(frozen=True)
class RankExit:
    """How one rank ended."""

    rank: int
    record: ExitRecord
    time: float = math.inf
    """When the rank failed, in seconds since 1970; inf for a rank that was killed, of which nothing is known."""
    own: bool = False
    """A 76 that is no lost peer: the rank's own device failed."""

    def order(self, lost: float) -> tuple[int, float]:
        """Sorts the cause of an attempt's end to the front. ``lost``: when a rank first lost a peer.

        A failure of a rank itself decides, and the earliest of several: the later ones followed from it. A rank that
        lost its peers or was killed never decides over it, nor over a checkpoint that was written. What has no name
        (70) and came after a peer was lost is taken for its consequence: libraries say a lost peer in many ways.
        """
        code = self.record.code
        itself = self.own or code not in (0, CHECKPOINTED, LOST_PEER)
        if code == UNNAMED and self.time > lost:
            return 3, self.time
        return (0 if itself else {CHECKPOINTED: 1, LOST_PEER: 2, 0: 4}[code]), self.time


def write_json(path: Path, content: Mapping[str, Any], spare: Path | None = None) -> None:
    """Replace ``path`` at once and durably: a reader sees the old or the new file, also after a power cut.

    On a full disk the content goes into the file ``spare`` of ``reserve``, its reason cut to the space. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with opened(temporary, "xb") as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())
            flushed(stream)
        publish(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if spare is None or not spare.is_file():
            raise
        short = {**content, "reason": str(content.get("reason", ""))[:300]}
        with opened(spare, "r+b") as stream:
            stream.write((json.dumps(short, indent=1) + "\n").encode().ljust(RESERVED_BYTES))
            flushed(stream)
        publish(spare, path)


def reserve(run_dir: Path, attempt: int, rank: int) -> None:
    """Take the disk space of this rank's record, and on rank 0 that of exit.json. Raises OSError.

    Each attempt has files of its own, because one that is refused must not touch those of the run that goes on. Rank 0,
    which holds the run's lock, removes what killed attempts left.
    """
    for path in _spares(run_dir, attempt, rank):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with opened(path, "xb") as stream:
            stream.write(b" " * RESERVED_BYTES)
            flushed(stream)
    for left in (run_dir / "exit").glob(".reserved-*") if rank == 0 else ():
        if not left.name.startswith(f".reserved-{attempt}-"):
            left.unlink(missing_ok=True)


def release(run_dir: Path, attempt: int, rank: int) -> None:
    """Remove what ``reserve`` took and nobody needed."""
    for path in _spares(run_dir, attempt, rank):
        path.unlink(missing_ok=True)


def _spares(run_dir: Path, attempt: int, rank: int) -> list[Path]:
    return [spare_of(run_dir, attempt, rank), *([spare_of(run_dir, attempt)] if rank == 0 else [])]


def spare_of(run_dir: Path, attempt: int, rank: int | None = None) -> Path:
    """The file that holds the space of the record of ``rank``, or of exit.json."""
    return run_dir / "exit" / f".reserved-{attempt}-{'exit' if rank is None else f'rank-{rank}'}"


def rank_file(run_dir: Path, attempt: int, rank: int) -> Path:
    return run_dir / "exit" / f"attempt-{attempt}-rank-{rank}.json"


def next_attempt(run_dir: Path) -> int:
    """The number of the attempt that starts now: the highest number on disk plus one, or 0 in a fresh folder."""
    marks = [int(path.name.split("-")[1]) for path in (run_dir / "exit").glob("attempt-*-*")]
    owner = owner_of(run_dir)
    return max([*marks, owner.attempt if owner else -1], default=-1) + 1


def begin_attempt(run_dir: Path) -> int:
    """Take the next number, for a launcher: of two that begin at once, each gets one of its own. Raises OSError."""
    (run_dir / "exit").mkdir(parents=True, exist_ok=True)
    while True:
        attempt = next_attempt(run_dir)
        with contextlib.suppress(FileExistsError):
            opened(run_dir / "exit" / f"attempt-{attempt}-begun", "xb").close()
            return attempt


def attempt_of(run_dir: Path) -> int:
    """The number of the attempt that this process belongs to: its launcher's, or the next one."""
    given = os.environ.get(LAUNCHED)
    return int(given) if given else next_attempt(run_dir)


def mark_start(run_dir: Path, attempt: int) -> None:
    """Record the attempt for ``next_attempt``, which must count it even if every rank is killed later."""
    write_json(run_dir / "exit" / f"attempt-{attempt}-start.json", {"time": time.time()})


def write_rank_exit(
    run_dir: Path, rank: int, record: ExitRecord, *, time_failed: float | None = None, own: bool = False
) -> bool:
    """Write how ``rank`` ended; True if it is the first to end so, and ``merge_exits`` is due. Raises OSError.

    ``own``: a 76 whose cause is the rank's own device.
    """
    when = time.time() if time_failed is None else time_failed
    content = {**redact(asdict(record)), "rank": rank, "time": when, "host": socket.gethostname(), "own": own}
    path = rank_file(run_dir, record.attempt, rank)
    write_json(path, content, spare_of(run_dir, record.attempt, rank))
    link = path.with_name(f"attempt-{record.attempt}-first-{record.code}{'-own' if own else ''}")
    with contextlib.suppress(OSError):  # a file system without links, or a full one
        try:
            link.symlink_to(path.name)
        except FileExistsError:
            if record.code in (0, CHECKPOINTED) or _time(_json(link)) <= when:
                return False
            other = link.with_name(f".{link.name}.{rank}")  # its disk was faster, and this rank failed before
            other.symlink_to(path.name)
            other.replace(link)
    return True


def finished(run_dir: Path) -> bool:
    """Whether exit.json says that the last attempt ended with code 0; an exit.json that is no record says nothing."""
    return _json(run_dir / "exit.json").get("code") == 0


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty for a file that is absent or broken."""
    return object_if_there(path)


def _read(run_dir: Path, attempt: int, rank: int) -> RankExit:
    """How ``rank`` ended; a rank whose file is absent or broken was killed."""
    found = _json(rank_file(run_dir, attempt, rank))
    if all(type(found.get(key)) is kind for key, kind in KINDS.items()):
        record = ExitRecord(**{key: found[key] for key in KINDS})
        return RankExit(rank, record, _time(found), found.get("own") is True)
    died = ExitRecord(LOST_PEER, f"rank {rank} died without a word", 0, "see logs/ and the kernel's log", attempt)
    return RankExit(rank, died)


def _time(found: Mapping[str, Any]) -> float:
    """When a rank ended by its file; inf if that is not said."""
    when = found.get("time")
    return when if isinstance(when, float) and math.isfinite(when) else math.inf


def _by_cause(ends: Iterable[RankExit]) -> list[RankExit]:
    ends = list(ends)
    lost = min((each.time for each in ends if each.record.code == LOST_PEER and not each.own), default=math.inf)
    return sorted(ends, key=lambda each: each.order(lost))


def _reduced(ends: Iterable[RankExit]) -> ExitRecord:
    """The record of the first failure, with the last step that any rank completed, and who died beside it."""
    ends = _by_cause(ends)
    first = ends[0].record
    dead = [each.rank for each in ends if math.isinf(each.time)]
    reason = first.reason
    if dead and first.code == LOST_PEER and not ends[0].own:
        ranks = f"rank {dead[0]}" if len(dead) == 1 else f"ranks {', '.join(map(str, sorted(dead)))}"
        reason = (
            f"{ranks} died without a word" if math.isinf(ends[0].time) else f"{reason}; {ranks} died without a word"
        )
    return ExitRecord(first.code, reason, max(each.record.step for each in ends), first.hint, first.attempt)


def merge_exits(run_dir: Path, attempt: int, own: int | None = None) -> ExitRecord:
    """Write ``exit.json`` from the first ranks that ended with each code. A run without a supervisor knows no more.

    ``own``: the rank that asks, which may have found no room for its link. Several ranks may do so at once. Each looks
    again after it has written, so the last one has seen all links: a link that came after its look belongs to a rank
    that writes later. An attempt whose run a later one has taken over leaves that one's exit.json alone.
    """
    ranks = _first_ranks(run_dir, attempt, own)
    while True:
        record = _reduced(_read(run_dir, attempt, rank) for rank in ranks)
        if successor(run_dir, attempt):
            return record
        write_json(run_dir / "exit.json", asdict(record), spare_of(run_dir, attempt))
        before, ranks = ranks, _first_ranks(run_dir, attempt, own)
        if ranks == before:
            return record


def _first_ranks(run_dir: Path, attempt: int, own: int | None) -> set[int]:
    """The first rank of every code, and ``own``; where links cannot be made, all ranks that have ended."""
    first = [path.readlink().stem for path in run_dir.glob(f"exit/attempt-{attempt}-first-*")]
    names = first or [path.stem for path in run_dir.glob(f"exit/attempt-{attempt}-rank-*.json")]
    return {int(name.rpartition("-")[2]) for name in names} | ({own} if own is not None else set())


def reduce_exits(run_dir: Path, attempt: int, world: int) -> ExitRecord:
    """Write ``exit.json`` after all ``world`` ranks of an attempt have ended; a rank without a file was killed (76).

    An attempt that was refused because another run has the folder leaves that run's exit.json alone, and so does one
    whose run a later attempt has taken over: it ends with 73.
    """
    record = _reduced(_read(run_dir, attempt, rank) for rank in range(world))
    if later := successor(run_dir, attempt):
        return replace(record, code=CANNOT_CREATE, reason=f"{later}, has taken this run over", hint="")
    if record.code != CANNOT_CREATE or not _in_use(run_dir):
        write_json(run_dir / "exit.json", asdict(record), spare_of(run_dir, attempt))
    return record


def _in_use(run_dir: Path) -> bool:
    try:
        take_lock(run_dir / "lock").close()
    except LockHeld:
        return True
    except OSError:  # a file system without locks, or a folder that cannot be written
        return False
    return False
