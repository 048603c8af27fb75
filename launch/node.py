"""One task per node of a SLURM job: finds this node's place among the others, looks it over, becomes torchrun.

Started by slurm/train.sh through srun, with the overrides as arguments, byte for byte. Reads CORRAL_HEAD (address of
the first node), CORRAL_PORT, CORRAL_NPROC and SLURM's own variables.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from conf.errors import CorralError, Unavailable, leave_with_code

SIOCGIFADDR = 0x8915  # linux/sockios.h: IPv4 address of an interface


def own_address(head: str) -> str:
    """This node's IPv4 address on the way to ``head``; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((head, 9))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Name of the network interface that has ``address``; None if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


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
        *arguments,
    ]


def look_over(run_dir: Path, processes: int) -> None:
    """What can be told about a node before a model is loaded. Raises Unavailable naming the node."""
    node = socket.gethostname()
    try:
        with tempfile.NamedTemporaryFile(dir=run_dir / "logs", prefix=".write-test-"):
            pass
    except OSError as error:
        raise Unavailable(
            f"node {node} cannot write to {run_dir}: {error.strerror}; is it on a shared file system?"
        ) from None
    found = visible_gpus()
    if found is not None and 0 < found < processes:
        raise Unavailable(
            f"node {node} shows {found} GPUs where {processes} were asked for; exclude it (sbatch -x {node})"
        )


def visible_gpus() -> int | None:
    """GPUs the driver lists; None without NVIDIA's driver tools."""
    if shutil.which("nvidia-smi") is None:
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def main() -> NoReturn:
    head, processes = os.environ["CORRAL_HEAD"], int(os.environ["CORRAL_NPROC"])
    run_dir = Path(os.environ["CORRAL_LOG_DIR"]).parent
    try:
        look_over(run_dir, processes)
        address = own_address(head)
    except (CorralError, OSError) as error:
        # The batch script reads these names, and a rerun leaves the node out.
        with (run_dir / "exit" / f"bad-nodes-{os.environ['SLURM_JOB_ID']}").open("a") as bad:
            bad.write(f"{os.environ.get('SLURMD_NODENAME', socket.gethostname())}\n")
        raise Unavailable(str(error)) from None
    interface = interface_of(address)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun_arguments(os.environ, sys.argv[1:])])


if __name__ == "__main__":
    leave_with_code(main)
