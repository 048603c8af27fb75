"""What a run was started from: code, versions, machine. No command line and no environment, so no secrets."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy", "pyarrow")
GIT_SECONDS = 20.0


def provenance(repository: Path) -> dict[str, Any]:
    """Commit and hash of uncommitted changes (None outside a git clone), versions (None: absent), host, time (UTC)."""
    commit = _git(repository, "rev-parse", "HEAD")
    changes = _git(repository, "diff", "HEAD")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "commit": commit.decode().strip() if commit else None,
        "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def record(path: Path, facts: dict[str, Any]) -> None:
    """Append ``facts`` as one line to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(repository: Path, *arguments: str) -> bytes | None:
    """Output of a git command; None without git, outside a clone, or when it takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
