"""Submission to SLURM: the sbatch command line of a run, tried out before it is sent."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError, Unavailable
from conf.schema import ClusterConfig, RunConfig
from launch.run_dir import make_logs
from launch.torchrun import ROOT

SECONDS = 60.0
"""SLURM's controller answers within this or counts as down."""


def has_gpus(partition: str | None) -> bool:
    """Whether SLURM manages GPUs on a node of ``partition`` (None: any)."""
    command = ["sinfo", "--noheader", "--format=%G", *([f"--partition={partition}"] if partition else [])]
    return "gpu" in _ask(command)


def sbatch_options(cfg: RunConfig, log_dir: Path, *, gpus: bool) -> list[str]:
    """sbatch's options for ``cfg.cluster``. Without GPUs the processes are counted by CORRAL_NPROC instead."""
    cluster: ClusterConfig = cfg.cluster
    options = [f"--job-name={cfg.name}", f"--nodes={cluster.nodes}", f"--output={log_dir}/slurm-%j.log"]
    if gpus:
        options.append(f"--gpus-per-node={cluster.gpus_per_node}")
    for name in ("partition", "account", "time"):
        value = getattr(cluster, name)
        if value is not None:
            options.append(f"--{name}={value}")
    return options


def submit(cfg: RunConfig, arguments: Sequence[str]) -> str:
    """Submit slurm/train.sh with the overrides ``arguments`` as they are; the job id.

    Raises Unavailable without sbatch or controller, ConfigError with SLURM's own words if it refuses the request,
    CannotCreate or PermissionDenied if the folder of the log, without which SLURM loses it, cannot be made.
    """
    if shutil.which("sbatch") is None:
        raise Unavailable("cluster.kind=slurm: sbatch is not on PATH; run this on a login node, or set cluster=local")
    log_dir = make_logs(Path(cfg.run_dir).resolve())
    options = sbatch_options(cfg, log_dir, gpus=has_gpus(cfg.cluster.partition))
    job = [*options, str(ROOT / "slurm" / "train.sh"), *arguments]
    environment = {
        "CORRAL_NPROC": str(cfg.cluster.gpus_per_node),
        "CORRAL_REPOSITORY": str(ROOT),
        "CORRAL_MAX_RESTARTS": str(cfg.cluster.max_restarts),
    }
    _ask(["sbatch", "--test-only", *job], environment)
    return _ask(["sbatch", "--parsable", *job], environment).strip().partition(";")[0]


def _ask(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Output of a SLURM client. Its refusal becomes a ConfigError, its silence Unavailable."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on PATH; run this on a login node, or set cluster=local") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"SLURM's controller did not answer {command[0]} within {SECONDS:.0f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "contact slurm controller" in said.lower() or "resolve" in said.lower():
            raise Unavailable(f"SLURM's controller cannot be reached: {said}")
        raise ConfigError(f"cluster: SLURM refuses this job: {said}; change cluster.* or the name that it objects to")
    return done.stdout
