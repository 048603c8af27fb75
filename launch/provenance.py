"""Records the code, versions and machine of a run. It records no command line and no environment, so no secrets."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conf.durable import append_line

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy", "pyarrow")
GIT_SECONDS = 20.0
ORIGIN = ".origin.json"
"""File in a copy of the code that says what it is a copy of."""


def provenance(repository: Path) -> dict[str, Any]:
    """``origin``, versions (None: absent), host, time (UTC)."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        **origin(repository),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def versions() -> dict[str, str | None]:
    """What may change the numbers of a run, python among it; None: absent."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def origin(repository: Path) -> dict[str, Any]:
    """Commit and hash of uncommitted changes: None outside a git clone, and for no changes."""
    if (repository / ORIGIN).is_file():
        found: dict[str, Any] = json.loads((repository / ORIGIN).read_text(encoding="utf-8"))
        return found
    commit = _git(repository, "rev-parse", "HEAD")
    changes = _git(repository, "diff", "HEAD")
    return {
        "commit": commit.decode().strip() if commit else None,
        "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two records of ``provenance``, for one sentence; nothing if code and versions are equal."""
    found = []
    if before.get("commit") != now["commit"]:
        found.append(f"commit {str(before.get('commit'))[:12]}, now {str(now['commit'])[:12]}")
    elif before.get("diff_sha256") != now["diff_sha256"]:
        found.append("other uncommitted changes")
    versions = {"python": before.get("python"), **(before.get("versions") or {})}
    for name, installed in {"python": now["python"], **now["versions"]}.items():
        if versions.get(name) != installed:
            found.append(f"{name} {versions.get(name)}, now {installed}")
    return "; ".join(found)


def record(path: Path, facts: dict[str, Any]) -> None:
    """Append ``facts`` as one line to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, facts)


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
