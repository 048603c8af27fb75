"""Runs once per node of a SLURM job, after its preflight, and becomes torchrun.

Started by slurm/train.sh through srun, with the overrides as arguments, byte for byte. Reads CORRAL_HEAD (address of
the first node), CORRAL_PORT, CORRAL_NPROC and SLURM's own variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from conf.disk.folders import own_local_folder
from conf.errors import leave_with_code
from conf.safety.arguments import for_children


def torchrun_arguments(environment: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """torchrun on this node. Static rendezvous: SLURM knows every node's rank, and a requeue does the restarting."""
    return [
        "-m",
        "torch.distributed.run",
        f"--nnodes={environment['SLURM_NNODES']}",
        f"--node-rank={environment['SLURM_NODEID']}",
        f"--nproc-per-node={environment['CORRAL_NPROC']}",
        f"--master-addr={environment['CORRAL_HEAD']}",
        f"--master-port={environment['CORRAL_PORT']}",
        f"--rdzv-id={environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT', '0')}",
        "--max-restarts=0",
        "-m",
        "launch.worker",
        *for_children(arguments),
    ]


def main() -> NoReturn:
    own_local_folder(Path(os.environ["CORRAL_LOCAL_DIR"]), "CORRAL_LOCAL_DIR")  # the first node's shell has, there
    os.execv(sys.executable, [sys.executable, *torchrun_arguments(os.environ, sys.argv[1:])])


if __name__ == "__main__":
    leave_with_code(main)
