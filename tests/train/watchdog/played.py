"""Plays torchrun and its ranks for the watchdog's tests: real processes and a real watchdog, without torch.

``played.py RUN_DIR SECONDS ACT ACT`` starts a rank per ACT in a session of its own, as torchrun does, and waits for
all. An act is words that a rank does in turn: ``steps`` (20 short ones), ``for-ever`` (steps), ``stuck`` (a reader
that never returns), ``evaluate`` and ``save`` (2.5 s in silence), ``start`` (silence before the first step),
``end-CODE``, ``claim`` and ``mark`` (what a first rank writes); ``late`` never joins. Without ``end`` it ends with 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from conf.exits import ExitRecord, mark_start, write_rank_exit
from train.watchdog.board import Phase, Place
from train.watchdog.heartbeat import heart


def stuck_reader() -> None:
    heart.begin_step()
    time.sleep(600)


def take_steps(count: int) -> None:
    for step in range(count):
        heart.begin_step()
        heart.at(Place.COMPUTING)
        time.sleep(0.02)
        heart.at(Place.UPDATING)
        heart.end_step(step + 1, 0.02)


def play(word: str, run_dir: Path, rank: int) -> None:
    name, _, code = word.partition("-")
    if word == "for-ever":
        take_steps(10**6)
    elif name == "steps":
        take_steps(20)
    elif name == "stuck":
        stuck_reader()
    elif name in ("evaluate", "save"):
        heart.enter(Phase.EVALUATION if name == "evaluate" else Phase.CHECKPOINT)
        time.sleep(2.5)
    elif name == "start":
        time.sleep(600)
    elif name == "claim":
        (run_dir / "lock").write_text(f"process {os.getpid()} on here, since now\n")
    elif name == "mark":
        mark_start(run_dir, 0)
    elif name == "end":
        write_rank_exit(run_dir, rank, ExitRecord(int(code), "played", 20, "", 0))
        heart.ended(int(code))
        os._exit(int(code))


def main() -> None:
    run_dir, seconds, acts = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if "RANK" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: None)  # a stop request that a rank in a wait does not look at
        rank = int(os.environ["RANK"])
        (run_dir / f"pid-{rank}").write_text(str(os.getpid()))
        if acts[rank] == "late":
            time.sleep(600)
        heart.begin(str(run_dir), seconds)
        for word in [*acts[rank].split(), "end-0"]:
            play(word, run_dir, rank)
    group = {"TORCHELASTIC_RUN_ID": uuid.uuid4().hex, "LOCAL_WORLD_SIZE": str(len(acts)), "CORRAL_ATTEMPT": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:]],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(len(acts))
    ]
    sys.exit(max(abs(rank.wait()) for rank in ranks))


if __name__ == "__main__":
    main()
