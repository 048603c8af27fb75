"""What the watchdog says and leaves in the run's folder: exit records for ranks that have none, stacks, an event."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.attempts.owner import successor
from conf.durable import append_line, write_whole
from conf.errors import DistributedFailure
from conf.exits import LAUNCHED, ExitRecord, merge_exits, rank_file, write_rank_exit
from train.watchdog.board import Board, Slot, Word
from train.watchdog.heartbeat import STACKS_SIGNAL
from train.watchdog.limits import Hang
from train.watchdog.member import Member
from train.watchdog.processes import STATES, described

STACKS_SECONDS = 2.0
"""How long ranks have to write their stacks."""
HINT = "start the same command again: it continues from the last checkpoint"


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        print(f"corral: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Records:
    """Of one attempt of a run, for the ranks of this node."""

    board: Board
    members: Sequence[Member]
    """All ranks that have been seen, ended ones too; one at least has come."""

    @property
    def _first(self) -> Slot:
        return next(member.slot for member in self.members if member.here)

    @property
    def run_dir(self) -> Path:
        return self._first.run_dir

    @property
    def attempt(self) -> int:
        return self._first.words[Word.ATTEMPT]

    def tell_end(self, members: Sequence[Member], text: str) -> None:
        """``text`` on the terminal and in the exit records of ``members``."""
        say(text)
        self.end(members, text)

    def end(self, members: Sequence[Member], reason: str) -> None:
        """Code 76 with ``reason`` for each of ``members`` that has not written how it ended, then exit.json.

        Without a launcher, the number of a group that is refused may be that of the run that goes on.
        """
        if not self.run_dir.is_dir() or not (self._is_ours() or LAUNCHED in os.environ):
            return
        try:
            for member in members:
                if not rank_file(self.run_dir, self.attempt, member.rank).exists():
                    step = member.slot.words[Word.STEP]
                    record = ExitRecord(DistributedFailure.code, reason, step, HINT, self.attempt)
                    write_rank_exit(self.run_dir, member.rank, record, time_failed=member.alive_at)
            if self._is_ours():
                merge_exits(self.run_dir, self.attempt)
        except OSError as error:
            say(f"cannot write {self.run_dir / 'exit'}: {error.strerror}")

    def hang(self, living: Sequence[Member], hang: Hang) -> None:
        """Everything about a hang: stacks, the sentence on the terminal, exit records, an event."""
        host = socket.gethostname()
        stacks = self._write_stacks(living, hang)
        text = f"on {host}, {hang.text}; the watchdog ended the ranks of this node; {stacks}"
        say(text)
        self.end(living, text)
        if not self._is_ours():
            return
        step = max(member.slot.words[Word.STEP] for member in living)
        event = {"time": time.time(), "kind": "hang", "step": step, "attempt": self.attempt}
        try:
            append_line(self.run_dir / "events.jsonl", {**event, "ranks": list(hang.ranks), "host": host, "text": text})
        except OSError as error:
            say(f"cannot append to {self.run_dir / 'events.jsonl'}: {error.strerror}")

    def _is_ours(self) -> bool:
        """Whether this attempt has the run: a group that is refused leaves the files of the running one alone.

        The first rank holds the lock. On the other nodes nobody does.
        """
        if successor(self.run_dir, self.attempt):
            return False
        if all(member.rank for member in self.members):
            return (self.run_dir / "exit" / f"attempt-{self.attempt}-start.json").is_file()
        try:
            holder = (self.run_dir / "lock").read_text(encoding="utf-8")
        except OSError:
            return False
        return any(holder.startswith(f"process {member.pid} on ") for member in self.members)

    def _write_stacks(self, living: Sequence[Member], hang: Hang) -> str:
        """What every rank does, in one file; returns where that is, or why there is none."""
        # The signal would end one that has not come, because it has no handler yet.
        asked = [member for member in living if member.here and member.state != "T"]
        for member in asked:
            member.send(STACKS_SIGNAL)
        self._wait_for_stacks(asked)
        parts = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} on {socket.gethostname()}: {hang.text}"]
        for member in living:
            place = f"{member.seen.where}, without a sign of life for {member.quiet:.0f} s"
            parts += ["", f"=== rank {member.rank}, process {member.pid}, {place}", described(member.pid)]
            stacks = self.board.stacks_of(member.local_rank)
            parts.append(stacks or f"no stacks: the process {STATES.get(member.state, 'has ended')}")
        path = self.run_dir / "logs" / f"hang-attempt-{self.attempt}-{socket.gethostname()}.txt"
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, "\n".join(parts) + "\n")
        except OSError as error:
            return f"no stacks, because {path} cannot be written ({error.strerror})"
        return f"stacks of all ranks in {path}"

    def _wait_for_stacks(self, members: Sequence[Member]) -> None:
        """Until every rank has written stacks and none adds to them."""
        before: list[int] = []
        deadline = time.monotonic() + STACKS_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.1)
            sizes = [len(self.board.stacks_of(member.local_rank)) for member in members]
            if sizes == before and all(sizes):
                return
            before = sizes
