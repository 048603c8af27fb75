"""Prepares the folder of a run for the launcher: creates it, checks that it may be used, and locks it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.checks.changes import changed_settings
from conf.disk.folders import own_run_dir, refuse_foreign_content
from conf.durable import LockHeld, opened, take_lock
from conf.errors import CannotCreate
from conf.foreign.json_file import object_in
from conf.frozen import thawed
from conf.schema import RunConfig
from launch.provenance import changed, provenance, record
from launch.restarts import newest_checkpoint


def make_logs(run_dir: Path) -> Path:
    """``run_dir``/logs, made if absent. Raises PermissionDenied (77) or CannotCreate (73)."""
    logs = run_dir / "logs"
    with own_run_dir(run_dir):
        refuse_foreign_content(run_dir, "run_dir")
        logs.mkdir(exist_ok=True)
        opened(logs / "launch.lock", "ab").close()
    return logs


def note_launch(logs: Path, repository: Path) -> None:
    """Append one line to logs/launches.jsonl with the code, versions and machine of this start.

    Says so on stderr if the start before had other code or versions.
    """
    now, before = provenance(repository), _last_launch(logs)
    record(logs / "launches.jsonl", now)
    if before and (other := changed(before, now)):
        print(
            f"corral: warning: the start before this one ran other code: {other}; the bits of the run may differ from "
            "here on (cluster.snapshot=true has every restart of a job run one copy of the code)",
            file=sys.stderr,
            flush=True,
        )


def _last_launch(logs: Path) -> dict[str, Any]:
    """The newest line that is whole; a kill may have cut it, and nothing depends on it."""
    path = logs / "launches.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return next((found for line in reversed(lines) if (found := object_in(line))), {})


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[Path]:
    """Hold the lock of the launcher and yield the logs folder. Raises CannotCreate, which names the lock's holder."""
    logs = make_logs(run_dir)
    try:
        lock = take_lock(logs / "launch.lock", holder=f"{os.getpid()}\n")
    except LockHeld as held:
        raise CannotCreate(
            f"run_dir={run_dir} is supervised by another launcher (process {held.holder}); "
            "wait for it, stop it, or set another run_dir or name"
        ) from None
    except OSError as error:
        raise CannotCreate(f"run_dir={run_dir}: cannot be locked: {error.strerror}; set another run_dir") from None
    with lock:
        yield logs


def refuse_changes(cfg: RunConfig) -> None:
    """Refuse settings that the run's newest checkpoint does not allow (ConfigError), before a queue and a model.

    The run judges again, by a checkpoint that it has verified; a MANIFEST without its seal, or of another shape, says
    nothing here.
    """
    run_dir = Path(cfg.run_dir)
    folder = run_dir / "checkpoints" / f"step-{newest_checkpoint(run_dir):08d}"
    try:
        content, seal = ((folder / name).read_bytes() for name in ("MANIFEST.json", "MANIFEST.sha256"))
    except OSError:
        return
    if seal.split()[:1] == [hashlib.sha256(content).hexdigest().encode()]:
        manifest = object_in(content)
        config, step = manifest.get("config"), manifest.get("step")
        if isinstance(config, dict) and isinstance(step, int):
            changed_settings(cfg, thawed(config, f"the config in {folder}"), step)
