"""What slurm/train.sh asks of Python, so that the shell needs no logic of its own.

``begin`` before srun: makes the folders, prints the number of the attempt and the run's folder, one per line.
``settle attempt=N restarts=N world=N`` after it: writes exit.json; its exit code is the run's, or 75 to be requeued.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.compose import config_from_argv
from conf.errors import ConfigError
from conf.exits import next_attempt
from launch.restarts import settle
from launch.run_dir import make_logs, note_launch
from launch.torchrun import ROOT

SETTLE_KEYS: Mapping[str, str] = {
    "attempt": "number of the attempt that has ended",
    "restarts": "how often SLURM restarted this job before",
    "world": "processes of the run",
}


def begin(arguments: Sequence[str]) -> int:
    cfg, _ = config_from_argv(arguments, command="launch begin")
    run_dir = Path(cfg.run_dir).resolve()
    logs = make_logs(run_dir)
    (run_dir / "exit").mkdir(exist_ok=True)
    note_launch(logs, ROOT)
    print(next_attempt(run_dir))
    print(run_dir)
    return 0


def finish(arguments: Sequence[str]) -> int:
    cfg, own = config_from_argv(arguments, command="launch settle", extra=SETTLE_KEYS)
    try:
        attempt, restarts, world = (int(own[key]) for key in SETTLE_KEYS)
    except (KeyError, ValueError):
        raise ConfigError("launch settle: attempt, restarts and world must be given as whole numbers") from None
    outcome = settle(
        Path(cfg.run_dir),
        attempt=attempt,
        first=max(0, attempt - restarts),
        world=world,
        max_restarts=int(os.environ.get("CORRAL_MAX_RESTARTS", cfg.cluster.max_restarts)),
    )
    ended = outcome.record
    print(f"corral: attempt {attempt} ended with {ended.code} at step {ended.step}: {ended.reason}", file=sys.stderr)
    return 75 if outcome.again else ended.code
