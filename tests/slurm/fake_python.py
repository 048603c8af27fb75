"""Stands in for the environment's python in slurm/train.sh: `launch` is real, preparation and training are played.

Every call is recorded. FAKE_PLAY is a JSON list with one entry per attempt (the last repeats): the code every node's
only rank leaves with, null to be killed, or "wait" for the stop file. Without it `launch` is played as well.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from conf.exits import ExitRecord, mark_start, write_rank_exit


def play(run_dir: Path) -> int:
    attempt, rank = int(os.environ["CORRAL_ATTEMPT"]), int(os.environ["SLURM_NODEID"])
    acts = json.loads(os.environ.get("FAKE_PLAY", "[0]"))
    code = acts[min(attempt, len(acts) - 1)]
    print(f"attempt {attempt} on {socket.gethostname()}", flush=True)
    if rank == 0:
        mark_start(run_dir, attempt)
    until_all_are_here(run_dir, attempt, rank)
    if code == "wait":
        (run_dir / f"waiting-{rank}").touch()
        while not Path(os.environ["CORRAL_STOP_FILE"]).exists():
            time.sleep(0.05)
        code = 75
    if code is None:
        os.kill(os.getpid(), signal.SIGKILL)
    write_rank_exit(run_dir, rank, ExitRecord(code, f"played {code}", 5, "", attempt))
    return code


def until_all_are_here(run_dir: Path, attempt: int, rank: int) -> None:
    """The first node to leave with a code takes the others down: none may leave before all have said that they ran."""
    (run_dir / f"here-{attempt}-{rank}").touch()
    deadline = time.monotonic() + 30
    while len(list(run_dir.glob(f"here-{attempt}-*"))) < int(os.environ["SLURM_NNODES"]):
        if time.monotonic() > deadline:
            sys.exit(f"attempt {attempt}: the other nodes did not come")
        time.sleep(0.05)


def main() -> int:
    run_dir = Path(os.environ["FAKE_RUN_DIR"])
    with Path(os.environ["FAKE_RECORD"]).open("a") as file:
        file.write(json.dumps({"argv": sys.argv[1:], "host": socket.gethostname()}) + "\n")
    module, word = sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    if module == "launch.node":
        return play(run_dir)
    if module == "launch" and "FAKE_PLAY" in os.environ:
        real = os.environ["REAL_PYTHON"]
        os.execv(real, [real, *sys.argv[1:]])
    if module == "launch" and word == "begin":
        for folder in ("logs", "exit"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        print(f"0\n{run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
