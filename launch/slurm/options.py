"""sbatch's options and the environment of a job, from ``cluster.*`` and from what SLURM says of its nodes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError, MissingInput
from conf.schema import ClusterConfig
from launch.slurm.clients import ask
from launch.torchrun import ROOT

NAMED = ("account", "time", "qos", "constraint", "reservation")
"""Settings that are sbatch's options of the same name."""
MAIL = "END,FAIL,REQUEUE"


@dataclass(frozen=True)
class NodeShape:
    """What SLURM manages on one kind of node: GPUs, CPUs and memory in MiB."""

    gpus: int
    cpus: int
    memory: int


def gpu_nodes(partition: str | None) -> list[NodeShape]:
    """The kinds of nodes with GPUs in ``partition``; None: in the default partition or, if it has none, in any."""
    command = ["sinfo", "--exact", "--noheader", "--format=%P|%G|%c|%m"]
    default: list[NodeShape] = []
    other: list[NodeShape] = []
    for line in ask([*command, *([f"--partition={partition}"] if partition else [])]).splitlines():
        name, gres, *sizes = line.strip().split("|")
        cpus, memory = (int(size.rstrip("+")) for size in sizes)
        if gpus := gpus_of(gres):
            (default if name.endswith("*") else other).append(NodeShape(gpus, cpus, memory))
    return default or other


def gpus_of(gres: str) -> int:
    """GPUs in SLURM's list of a node's devices, e.g. 8 in ``gpu:h100:8(S:0-1),nic:2``."""
    devices = re.sub(r"\([^)]*\)", "", gres).split(",")  # the sockets in parentheses may hold commas
    return sum(int(device.rpartition(":")[2]) for device in devices if device.startswith("gpu:"))


def share(nodes: Sequence[NodeShape], gpus: int) -> list[str]:
    """sbatch's options for the CPUs and the memory beside ``gpus`` GPUs per node; SLURM's defaults are a core or two.

    All GPUs of a node come with the whole node. Fewer come with their share of a node, of the smallest that is large
    enough. --cpus-per-gpu would say the same, but srun refuses it beside --cpus-per-task.
    """
    large = [node for node in nodes if node.gpus >= gpus]
    if not any(node.gpus > gpus for node in large):
        return ["--exclusive", "--mem=0"]  # 0: all of the node's. Too few GPUs on every node: sbatch says so
    cpus, memory = (min(getattr(node, kind) * gpus // node.gpus for node in large) for kind in ("cpus", "memory"))
    return [f"--cpus-per-task={max(1, cpus)}", f"--mem={memory}M"]


def of_training(cluster: ClusterConfig, nodes: Sequence[NodeShape], lead: int) -> list[str]:
    """Options of slurm/train.sh. ``lead``: seconds of --signal. Without GPUs (no ``nodes``) CORRAL_NPROC counts."""
    if cluster.min_nodes > cluster.nodes:
        raise ConfigError(
            f"cluster.min_nodes={cluster.min_nodes} and cluster.nodes={cluster.nodes}: a run starts with at least "
            "min_nodes of its nodes; set it to as many or fewer"
        )
    count = f"{cluster.min_nodes}-{cluster.nodes}" if cluster.min_nodes else f"{cluster.nodes}"
    options = [f"--nodes={count}", f"--signal=B:USR1@{lead}"]
    if nodes:
        options += [f"--gpus-per-node={cluster.gpus_per_node}", *_beside(cluster, share(nodes, cluster.gpus_per_node))]
    else:
        options += _beside(cluster, [f"--cpus-per-task={cluster.gpus_per_node}"])
    return [*options, *_of_site(cluster, cluster.partition)]


def of_preparation(cluster: ClusterConfig, processes: int) -> list[str]:
    """Options of slurm/data_prep.sh: one node, no GPU."""
    return [f"--cpus-per-task={max(1, processes)}", *_of_site(cluster, cluster.cpu_partition or cluster.partition)]


def of_evaluation(cluster: ClusterConfig, nodes: Sequence[NodeShape]) -> list[str]:
    """Options of slurm/evaluate.sh: one process, on a GPU where there are some."""
    one = ["--gpus-per-node=1", *share(nodes, 1)] if nodes else []
    return [*one, *_of_site(cluster, cluster.partition)]


def environment(cluster: ClusterConfig, repository: Path = ROOT) -> dict[str, str]:
    """Variables that the scripts in slurm/ read; sbatch hands its environment over."""
    found = {
        "CORRAL_NPROC": str(cluster.gpus_per_node),
        "CORRAL_REPOSITORY": str(repository),
        "CORRAL_MAX_RESTARTS": str(cluster.max_restarts),
        "CORRAL_SETUP": "\n".join(cluster.setup),
        "CORRAL_ENV_FILE": _env_file(cluster),
        "CORRAL_CONTAINER": _words("container", cluster.container),
        "CORRAL_SRUN_ARGS": _words("srun", cluster.srun),
    }
    if repository != ROOT and not cluster.container:  # a copy of the code has no environment beside it
        found["CORRAL_PYTHON"] = os.environ.get("CORRAL_PYTHON", sys.executable)
    return {name: value for name, value in found.items() if value}


def _beside(cluster: ClusterConfig, default: list[str]) -> list[str]:
    """CPUs and memory: the user's, where one is set, else the default."""
    chosen = {option.partition("=")[0]: option for option in default}
    if cluster.exclusive is not None:
        chosen.pop("--exclusive", None)
        if cluster.exclusive:
            chosen = {"--exclusive": "--exclusive", "--mem": "--mem=0"}
    if cluster.cpus_per_gpu:
        chosen["--cpus-per-task"] = f"--cpus-per-task={cluster.cpus_per_gpu * cluster.gpus_per_node}"
    if cluster.mem:
        chosen["--mem"] = f"--mem={cluster.mem}"
    return list(chosen.values())


def _of_site(cluster: ClusterConfig, partition: str | None) -> list[str]:
    options = [f"--partition={partition}"] if partition is not None else []
    options += [f"--{name}={value}" for name in NAMED if (value := getattr(cluster, name)) is not None]
    if cluster.mail:
        options += [f"--mail-user={cluster.mail}", f"--mail-type={MAIL}"]
    return [*options, *cluster.sbatch]


def _words(key: str, words: Sequence[str]) -> str:
    for word in words:
        if word.split() != [word]:
            raise ConfigError(f"cluster.{key}: {word!r} is no single word; give every word of the command by itself")
    return " ".join(words)


def _env_file(cluster: ClusterConfig) -> str:
    if not cluster.env_file:
        return ""
    path = Path(cluster.env_file).expanduser().absolute()
    if not path.is_file():
        raise MissingInput(f"cluster.env_file={cluster.env_file}: no such file; write lines NAME=value into it")
    return str(path)
