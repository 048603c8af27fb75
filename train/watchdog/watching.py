"""The watchdog's loop: who has come, who lives, who is silent, and what is done about it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from conf.attempts.owner import LEAVES_S, successor
from train.watchdog.board import Board, Phase, Word
from train.watchdog.limits import find_hang
from train.watchdog.member import Member
from train.watchdog.processes import born_and_state, children_of, state_of
from train.watchdog.records import Records

POLL_SECONDS = 0.25
GRACE_SECONDS = 5.0
"""After a rank is lost, the others have this time to notice, and to write how they ended."""
CLOSING_SECONDS = 40.0
"""The same for a rank that closes its trackers after another has ended in order; torchrun waits 30 s."""
LOOK_SECONDS = 5.0
"""Between two looks at who owns the run."""
WRITING_SECONDS = 4.0
"""What has to be written is given up after this time: the file system itself may hang."""


SAME_GROUP = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "LOCAL_WORLD_SIZE")
"""Variables that torchrun gives the ranks of one start, and local rank 0 passed on to this process."""


class Watchdog:
    """``parent``: id of the process that started the ranks and must outlive them, or 0."""

    def __init__(self, board: Board, parent: int) -> None:
        self.board, self.parent = board, parent
        self.parent_born = born_and_state(parent)[0] if parent else 0
        self.members: list[Member] = []
        self.records = Records(board, self.members)
        self.told: set[int] = set()
        """Local ranks of which has been said that they died."""
        self.since_lost = 0.0
        self.since_look = 0.0
        self.since_taken = 0.0
        """Seconds since a look found that a later attempt has taken the run over."""
        self.all_here = False

    def watch(self) -> None:
        """Return when no rank is left."""
        last = time.monotonic()
        while True:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            # More has passed only if this process did not run, and then the ranks may not have run either.
            passed, last = min(now - last, 2 * POLL_SECONDS), now
            self._take_in()
            for member in self.members:
                member.look(passed)
            living = [member for member in self.members if member.lives]
            self._look_for_successor(living, passed)
            if any(member.here for member in self.members):
                self._act(living, passed)
            if not any(member.lives for member in self.members):
                return

    def _take_in(self) -> None:
        """The ranks that have come, and those that torchrun has started and that may die before they come.

        Once all have come, the shared memory needs no name.
        """
        known = {member.local_rank for member in self.members}
        for local_rank, slot in enumerate(self.board.slots):
            if local_rank not in known and slot.words[Word.PID]:
                self.members.append(Member(local_rank, slot))
        if self.parent and len(self.members) < self.board.ranks:
            self._find_started()
        if not self.all_here and sum(member.here for member in self.members) == self.board.ranks:
            self.all_here = True
            self.board.path.unlink(missing_ok=True)

    def _find_started(self) -> None:
        known = {member.local_rank for member in self.members}
        for pid, variables in children_of(self.parent):
            if not all(variables.get(name) == os.environ.get(name) for name in SAME_GROUP):
                continue
            local_rank = int(variables.get("LOCAL_RANK", "-1"))
            if local_rank in range(self.board.ranks) and local_rank not in known:
                started = (int(variables.get("RANK", "0")), pid, born_and_state(pid)[0])
                self.members.append(Member(local_rank, self.board.slots[local_rank], started))

    def _look_for_successor(self, living: Sequence[Member], passed: float) -> None:
        """End the ranks of an attempt that has lost its run: they leave by themselves, unless they wait for others."""
        self.since_look += passed
        here = [member for member in living if member.here]
        if self.since_look < LOOK_SECONDS or not here:
            return
        if later := successor(self.records.run_dir, self.records.attempt):
            self.since_taken += self.since_look
            if self.since_taken > LEAVES_S:
                text = f"{later}, has taken this run over, and the ranks of {socket.gethostname()} had not left"
                self._end(here, partial(self.records.tell_end, here, text))
        self.since_look = 0.0

    def _act(self, living: Sequence[Member], passed: float) -> None:
        silent = [member for member in self.members if member.code is None and (member.lives or member.here)]
        if self.parent and silent and not self.told and not state_of(self.parent, self.parent_born):
            self._parent_died(silent)
        elif lost := [member for member in self.members if self._is_lost(member)]:
            self.since_lost += passed
            self._lost(lost, living)
        else:
            self._judge(living)

    def _is_lost(self, member: Member) -> bool:
        """Whether it ended, and not well. One that never came is missed in the start only: it may run unwatched."""
        if member.here:
            return not member.lives and member.code != 0
        return not member.lives and any(each.here and each.seen.phase is Phase.START for each in self.members)

    def _parent_died(self, silent: Sequence[Member]) -> None:
        text = (
            f"the process {self.parent} that started the ranks of {socket.gethostname()} (torchrun) was killed, so "
            "they ended too"
        )
        self._end(silent, partial(self.records.tell_end, silent, text))

    def _lost(self, lost: Sequence[Member], living: Sequence[Member]) -> None:
        """Say who died, and end the others once they had time to leave by themselves."""
        died = [member for member in lost if member.code is None]
        for member in died:
            if member.local_rank not in self.told:
                self.told.add(member.local_rank)
                self._write(partial(self.records.tell_end, [member], _death(member)))
        late = [member for member in living if self.since_lost >= grace(member, died=bool(died))]
        if late:
            # One that has said how it ended needs no record from here: its own says why the others ended too.
            names = ", ".join(str(member.rank) for member in died)
            text = f"rank {names} on {socket.gethostname()} died, and the others could not go on"
            self._end(late, lambda: self.records.end(late, text) if died else None)

    def _judge(self, living: Sequence[Member]) -> None:
        minimum = max((member.slot.words[Word.MINIMUM] for member in living), default=0)
        times = [seconds for member in living for seconds in member.slot.times]
        judged = [member.seen for member in living if member.here or member.stopped]
        hang = find_hang(judged, times, minimum) if minimum else None
        if hang is not None:
            self._end(living, partial(self.records.hang, living, hang))

    def _end(self, members: Sequence[Member], write: Callable[[], object]) -> None:
        """Write, then SIGKILL, which also ends a process that is stopped."""
        self._write(write)
        for member in members:
            self.told.add(member.local_rank)
            member.send(signal.SIGKILL)
        deadline = time.monotonic() + WRITING_SECONDS
        # One that waits for a device cannot be killed; then the next round tries again.
        while any(member.running for member in members) and time.monotonic() < deadline:
            time.sleep(0.02)
        for member in members:
            member.look(0.0)

    def _write(self, write: Callable[[], object]) -> None:
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(WRITING_SECONDS)


def _death(member: Member) -> str:
    return (
        f"rank {member.rank} on {socket.gethostname()} (process {member.pid}) died without a word "
        f"{member.seen.where}; its log and the kernel's (dmesg: out of memory?) may say why"
    )


def grace(member: Member, *, died: bool) -> float:
    """Seconds that ``member`` may live on after others are lost; ``died``: one of them without a word."""
    return CLOSING_SECONDS if member.seen.phase is Phase.END and not died else GRACE_SECONDS
