"""A copy of the code that a job runs: edits, while it waits and between its restarts, change nothing."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import subprocess
from pathlib import Path

from conf.errors import Unavailable
from conf.exits import write_json
from launch.provenance import ORIGIN, origin
from launch.torchrun import ROOT


def snapshot(run_dir: Path, repository: Path = ROOT) -> Path:
    """``repository``'s files as they are, uncommitted changes too, in ``run_dir``/code/DIGEST; equal code: one copy.

    What git ignores is left out. Raises Unavailable outside a git clone, OSError if it cannot be written.
    """
    names = _names(repository)
    digest = hashlib.sha256()
    for name in names:
        content = (repository / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    copy = run_dir / "code" / digest.hexdigest()[:16]
    if copy.is_dir():
        return copy
    made = copy.with_name(f".{copy.name}-{secrets.token_hex(4)}")
    for name in names:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, made / name)
    write_json(made / ORIGIN, origin(repository))
    made.rename(copy)
    return copy


def _names(repository: Path) -> list[str]:
    """Files that git tracks or would; those of folders named tests, docs and benchmarks are not run."""
    command = ["git", "-C", str(repository), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"cluster.snapshot=true: git cannot list the files of {repository} ({error}); set cluster.snapshot=false"
        ) from None
    names = sorted(listed.decode().split("\0")[:-1])
    return [
        name
        for name in names
        if name.partition("/")[0] not in ("tests", "docs", "benchmarks") and (repository / name).is_file()
    ]
