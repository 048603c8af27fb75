"""How a run stands, what it says, and asking it to stop; wherever it runs.

python -m launch status run_dir=DIR      its jobs, its step, how it ended
python -m launch logs run_dir=DIR        its newest log, followed for as long as the run lives
python -m launch cancel run_dir=DIR      asks it to save a checkpoint and leave; a second time ends it
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError, MissingInput
from conf.foreign.json_file import object_if_there, object_in
from conf.safety.texts import for_terminal
from launch.restarts import newest_checkpoint
from launch.slurm.jobs import cancel, states

TAIL = 4000
"""Bytes of a log that are shown before it is followed."""
POLL, ASK = 0.5, 5.0
"""Seconds between two looks at the log, and between two questions whether the run lives."""
TOGETHER = 120.0
"""Logs that were written within these seconds belong to one attempt."""


def show_status(arguments: Sequence[str]) -> int:
    run_dir = _run_dir(arguments, "status")
    print(f"{for_terminal(str(run_dir))}: {_progress(run_dir)}")
    found = states(run_dir)
    for state in found:
        if state.name:
            print(for_terminal(f"job {state.job} ({state.what}): {state.name}, {state.said}"))
    if gone := sum(not state.name for state in found):
        print(f"{gone} earlier job{'s' if gone > 1 else ''}, which SLURM no longer knows")
    if supervisor := _supervisor(run_dir):
        print(f"process {supervisor} of this machine supervises it")
    ended = object_if_there(run_dir / "exit.json")
    if ended:
        print(for_terminal(f"attempt {ended.get('attempt')} ended with {ended.get('code')}: {ended.get('reason')}"))
    return 0


def show_logs(arguments: Sequence[str]) -> int:
    run_dir = _run_dir(arguments, "logs")
    shown, place, lives, asked = None, 0, True, -ASK
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while True:
            if lives and time.monotonic() >= asked + ASK:
                lives, asked = _lives(run_dir), time.monotonic()
            path = _newest_log(run_dir)
            if path is None and not lives:
                raise MissingInput(f"{run_dir}/logs holds no log, and no job of the run is known; has it been started?")
            if path is not None:
                if path != shown:
                    print(f"corral: {for_terminal(str(path))}", file=sys.stderr, flush=True)
                    shown, place = path, max(0, path.stat().st_size - TAIL)
                place = _print_from(path, place)
            if not lives:
                return 0
            time.sleep(POLL)
    return 0


def ask_to_stop(arguments: Sequence[str]) -> int:
    run_dir = _run_dir(arguments, "cancel")
    said = list(cancel(run_dir))
    if supervisor := _supervisor(run_dir):
        os.kill(supervisor, signal.SIGTERM)
        said.append(
            f"process {supervisor} is asked to stop after a checkpoint; the same command again stops it without one"
        )
    print("\n".join(f"corral: {line}" for line in said) or f"corral: nothing of {run_dir} is running or waiting here")
    return 0


def _run_dir(arguments: Sequence[str], command: str) -> Path:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        raise SystemExit(0)
    word = arguments[0].removeprefix("run_dir=") if len(arguments) == 1 else ""
    if not word or ("=" in word and not Path(word).is_dir()):
        raise ConfigError(f"launch {command}: give the folder of a run and nothing else: launch {command} run_dir=DIR")
    run_dir = Path(word)
    if not (run_dir / "logs").is_dir():
        raise MissingInput(
            f"run_dir={run_dir}: no run was started there; launch where experiment=NAME prints its folder"
        )
    return run_dir


def _progress(run_dir: Path) -> str:
    step, checkpoint = 0, newest_checkpoint(run_dir)
    loss = ""
    for line in reversed(_tail(run_dir / "metrics.jsonl").splitlines()):
        found = object_in(line)
        if isinstance(found.get("step"), int):
            step = found["step"]
            loss = f", loss {found['train/loss']:.4g}" if isinstance(found.get("train/loss"), int | float) else ""
            break
    return f"step {step}{loss}, newest checkpoint at step {checkpoint}" if step or checkpoint else "no step yet"


def _lives(run_dir: Path) -> bool:
    return _supervisor(run_dir) is not None or any(state.lives for state in states(run_dir))


def _supervisor(run_dir: Path) -> int | None:
    """The launcher of this machine that supervises the run. The lock itself stays untouched: a start may want it."""
    path = run_dir / "logs" / "launch.lock"
    holder = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(holder) if holder.isdigit() and _is_launcher(int(holder)) else None


def _is_launcher(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"launch" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def _newest_log(run_dir: Path) -> Path | None:
    """Where rank 0 writes, else what the batch job says. Nodes write at the same time: the first one has rank 0."""
    for pattern in ("rank-0.log", "node-*.log", "slurm-*.log"):
        times = {path: path.stat().st_mtime for path in (run_dir / "logs").glob(pattern) if path.stat().st_size}
        if times:
            return min(path for path, written in times.items() if written > max(times.values()) - TOGETHER)
    return None


def _tail(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        return stream.read()


def _print_from(path: Path, place: int) -> int:
    with path.open("rb") as stream:
        stream.seek(place)
        while text := stream.read(1 << 16):
            sys.stdout.write(for_terminal(text.decode(errors="replace")))
            place += len(text)
    sys.stdout.flush()
    return place
