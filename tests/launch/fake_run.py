"""Plays torchrun and its ranks for the supervisor's tests, in plain processes and milliseconds.

``fake_run.py SCRIPT`` starts the ranks in sessions of their own, as torchrun does. SCRIPT is a JSON list with one entry
per attempt (the last one repeats): {"codes": [per rank: a code, or null to be killed], "step": N, "checkpoint": N}, or
{"wait": true}: every rank notes its id and waits for the stop file, then leaves with 75.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conf.exits import ExitRecord, mark_start, write_rank_exit


def play_rank(rank: int, act: dict, run_dir: Path, attempt: int) -> int:
    print(f"rank {rank} of attempt {attempt}", flush=True)
    if act.get("wait"):
        (run_dir / f"pid-{rank}").write_text(str(os.getpid()))
        while not Path(os.environ["CORRAL_STOP_FILE"]).exists():
            time.sleep(0.02)
        act = {"codes": [75, 75], "step": 3}
    if act.get("checkpoint") and rank == 0:
        folder = run_dir / "checkpoints" / f"step-{act['checkpoint']:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "MANIFEST.json").write_text("{}")
    code = act["codes"][rank]
    if code is None:
        os.kill(os.getpid(), signal.SIGKILL)
    # A peer is lost after it failed, whichever process of this play comes first.
    when = time.time() + (60.0 if code == 76 else 0.0)
    record = ExitRecord(code, f"played {code}", act.get("step", 0), "", attempt)
    write_rank_exit(run_dir, rank, record, time_failed=when)
    return code


def main() -> int:
    script, run_dir, attempt = json.loads(sys.argv[1]), Path(sys.argv[2]), int(os.environ["CORRAL_ATTEMPT"])
    act = script[min(attempt, len(script) - 1)]
    if "FAKE_RANK" in os.environ:
        return play_rank(int(os.environ["FAKE_RANK"]), act, run_dir, attempt)
    mark_start(run_dir, attempt)
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:]],
            env={**os.environ, "FAKE_RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(2)
    ]
    print("noise of torchrun", file=sys.stderr, flush=True)
    codes = [rank.wait() for rank in ranks]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
