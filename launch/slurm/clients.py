"""Questions to SLURM's clients (sbatch, sinfo, scontrol, ...), and what their failures mean."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from conf.errors import ConfigError, Unavailable

SECONDS = 60.0
"""The time that SLURM's controller has to answer; after it, the controller counts as down."""


def ask(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The output of a SLURM client. Raises ConfigError if SLURM refuses, Unavailable if it does not answer."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            encoding="utf-8",
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on PATH; run this on a login node, or set cluster=local") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"SLURM's controller did not answer {command[0]} within {SECONDS:.0f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "contact slurm controller" in said.lower() or "resolve" in said.lower():
            raise Unavailable(f"SLURM's controller cannot be reached: {said}")
        raise ConfigError(f"cluster: SLURM refuses this job: {said}; change cluster.* or the value that SLURM names")
    return done.stdout


def job_record(job: str) -> dict[str, str]:
    """What ``scontrol show job`` says of a job. Raises what ``ask`` raises."""
    words = ask(["scontrol", "-o", "show", "job", job]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)
