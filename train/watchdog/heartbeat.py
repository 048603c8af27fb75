"""The rank's side: it marks where it is in memory that the watchdog reads. A mark takes about a microsecond.

A process that no watchdog looks after (a command on one checkpoint, a test) marks memory of its own.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conf.exits import attempt_of
from train.watchdog.board import SHARED_MEMORY, Board, Phase, Place, Slot, Word, create, private_slot
from train.watchdog.processes import born_and_state, children_of

STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank write the stacks of its threads. The handler is C and needs no GIL."""
JOIN_SECONDS = 30.0
"""How long a rank waits for the memory, which local rank 0 makes. torchrun starts them within milliseconds, but a busy
machine or file system may hold one up."""


class Heart:
    """Of this process there is one, ``heart``."""

    def __init__(self) -> None:
        self._watch(private_slot())
        self.watched = False

    @property
    def attempt(self) -> int:
        """The number of this attempt, where ranks are watched: the same on all ranks of the node."""
        return self._words[Word.ATTEMPT]

    def _watch(self, slot: Slot) -> None:
        self._slot, self._words = slot, slot.words

    def begin(self, run_dir: str, minimum: int) -> None:
        """Join the ranks of this node under their watchdog, which local rank 0 starts. Once, before torch is imported.

        ``minimum``: seconds, ``watchdog.seconds``. Without shared memory the run goes on unwatched, and says so.
        """
        local_rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        folder = Path(run_dir).absolute()
        try:
            board = _joined(local_rank, ranks, folder)
            faulthandler.register(STACKS_SIGNAL, board.stack_file(local_rank), all_threads=True)
        except OSError as error:
            print(
                f"corral: no watchdog ({error.strerror or error}): a rank that hangs is noticed only by timeouts",
                file=sys.stderr,
                flush=True,
            )
            return
        slot = board.slots[local_rank]
        slot.run_dir = folder
        words = slot.words
        words[Word.BORN] = born_and_state(os.getpid())[0]
        words[Word.RANK] = int(os.environ.get("RANK", "0"))
        words[Word.MINIMUM] = minimum
        words[Word.PID] = os.getpid()
        self._watch(slot)
        self.watched = True

    def alive(self) -> None:
        """Progress inside a phase."""
        self._words[Word.BEATS] += 1

    def at(self, place: Place) -> None:
        """All ranks come to ``place`` next."""
        self._words[Word.PLACE] = place
        self._words[Word.POSITION] += 1
        self._words[Word.BEATS] += 1

    def enter(self, phase: Phase) -> None:
        """All ranks begin ``phase``, which lasts until another begins."""
        self._words[Word.PHASE] = phase
        self.at(Place.ELSEWHERE)

    def enter_alone(self, phase: Phase) -> None:
        """This rank begins ``phase``; the others may not."""
        self._words[Word.PHASE] = phase
        self.alive()

    def begin_step(self) -> None:
        """All ranks begin a step. After another phase it has more time: others may not have left that phase."""
        if self._words[Word.PHASE] != Phase.STEP:
            self._words[Word.PHASE] = Phase.FIRST_STEP
        self.at(Place.READING)

    def end_step(self, step: int, seconds: float) -> None:
        """All ranks have completed optimizer step ``step``, in ``seconds``."""
        self._words[Word.PHASE] = Phase.STEP
        self._words[Word.STEP] = step
        self._slot.add_time(seconds)
        self.at(Place.REPORTING)

    def ended(self, code: int) -> None:
        """This rank has written how it ended and leaves with ``code``."""
        self._words[Word.PHASE] = Phase.END
        self._words[Word.CODE] = code + 1


heart = Heart()


def _joined(local_rank: int, ranks: int, run_dir: Path) -> Board:
    path = _place(ranks)
    if local_rank == 0:
        create(path, ranks, attempt_of(run_dir))
        board = Board(path, ranks)
        _start_watchdog(path, ranks)
        return board
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return Board(path, ranks)
        except FileNotFoundError:
            first_lives = any(other.get("LOCAL_RANK") == "0" for _, other in children_of(os.getppid()))
            if not first_lives or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _place(ranks: int) -> Path:
    """The same name for the ranks of one torchrun on this node, and for nobody else, ever."""
    if ranks == 1:
        return SHARED_MEMORY / f"corral-{os.getpid()}-{born_and_state(os.getpid())[0]}"
    parent = os.getppid()
    group = [str(born_and_state(parent)[0])]
    group += [os.environ.get(name, "") for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
    return SHARED_MEMORY / f"corral-{parent}-{hashlib.blake2b('/'.join(group).encode(), digest_size=8).hexdigest()}"


def _start_watchdog(path: Path, ranks: int) -> None:
    """In a session of its own, because torchrun signals the sessions of its ranks."""
    parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
    root, search = Path(__file__).parents[2], os.environ.get("PYTHONPATH")
    subprocess.Popen(
        [sys.executable, "-m", "train.watchdog", str(path), str(ranks), str(parent)],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{search}" if search else str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
