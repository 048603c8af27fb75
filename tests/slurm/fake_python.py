"""Stands in for the environment's python in slurm/train.sh: `launch` is real, preparation and training are played.

Every call is recorded. FAKE_PLAY is a JSON list with one entry per attempt (the last repeats): the code every node's
only rank leaves with, null to be killed, "wait" for the stop file, or "bad" for a first node that is not fit. Without
it `launch` is played as well. The preflight is real with REAL_PREFLIGHT alone.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from conf.exits import ExitRecord, mark_start, write_rank_exit


def act(attempt: int) -> object:
    acts = json.loads(os.environ.get("FAKE_PLAY", "[0]"))
    return acts[min(attempt, len(acts) - 1)]


def preflight(run_dir: Path) -> int:
    """The verdict that launch/preflight would write down."""
    attempt = int(os.environ["CORRAL_ATTEMPT"])
    if act(attempt) != "bad":
        return 0
    with (run_dir / "exit" / f"bad-nodes-{os.environ['SLURM_JOB_ID']}").open("a") as file:
        file.write(f"{os.environ['SLURMD_NODENAME']}\n")
    write_rank_exit(run_dir, 0, ExitRecord(76, "played bad", 0, "", attempt), own=True)
    return 76


def play(run_dir: Path) -> int:
    attempt, rank = int(os.environ["CORRAL_ATTEMPT"]), int(os.environ["SLURM_NODEID"])
    code = act(attempt)
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
    words = sys.argv[1:]
    if "FAKE_PLAY" not in os.environ and words[-1] == "@/dev/stdin":
        words = [*words[:-1], *(word.decode() for word in sys.stdin.buffer.read().split(b"\0")[:-1])]
    with Path(os.environ["FAKE_RECORD"]).open("a") as file:
        file.write(json.dumps({"argv": words, "host": socket.gethostname()}) + "\n")
    module, word = sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    if module == "launch.node":
        return play(Path(os.environ["CORRAL_LOG_DIR"]).parent)
    if word == "preflight" and "REAL_PREFLIGHT" not in os.environ:
        return preflight(Path(os.environ["CORRAL_LOG_DIR"]).parent)
    real_too = ["launch"] * ("FAKE_PLAY" in os.environ) + ["launch.preflight.node"] * ("REAL_PREFLIGHT" in os.environ)
    if module in real_too:
        real = os.environ["REAL_PYTHON"]
        os.execv(real, [real, *sys.argv[1:]])
    if module == "data_prep" and "FAKE_PREPARES" in os.environ and not (run_dir / "prepared").exists():
        (run_dir / "prepared").touch()  # the next attempt has only to look
        time.sleep(60)
    if module == "launch" and word == "begin":
        for folder in ("logs", "exit"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        print(f"0\n{run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
