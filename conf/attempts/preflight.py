"""What the nodes of a preflight and its coordinator (launch/preflight) say to each other.

Lines of JSON over the pipes of srun, and nothing through run_dir, which may be what is wrong:

    coordinator: the order  ->  nodes: CLOCK, a FACT or FAULT per kind, LOOKED  ->  coordinator: GO
      ->  nodes become `python -m train.ranks.trial`: BITS, READY  ->  coordinator: GO
      ->  nodes: a LINK per neighbour, TOGETHER, DONE; or ABSENT, FAULT

A node whose stdin ends leaves. Every fact has a line of its own, because srun may break long ones.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

GO = "go"
CLOCK, FACT, FAULT, LOOKED = "clock", "fact", "fault", "looked"
BITS, READY, ABSENT, LINK, TOGETHER, DONE = "bits", "ready", "absent", "link", "together", "done"
LEFT = "left"
"""The process of a node has ended, whatever it was; the shell says so."""
MARK = "corral-preflight "
"""Begins the lines of a node among those of modules, containers and libraries."""
LINE = 1000
"""Bytes of a line, at most: srun keeps 1,024 whole."""


@dataclass(frozen=True)
class Order:
    """What the nodes are to look at."""

    arguments: list[str]
    """Of the run, from which every node composes the config."""
    run_dir: str
    seen: str
    """Name of a file in run_dir/logs that the coordinator has written."""
    corpus: str
    """Folder of the corpus; empty if it lies behind a URL."""
    head: str
    """Name or address of the first node; empty for a single node."""
    port: int
    """Where torch's trial meets there: the place of the ranks, which come later."""
    processes: int
    gpus: bool
    """SLURM has given the job a GPU per process."""

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def node_name() -> str:
    """What SLURM calls this node; without SLURM, its own name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def say(kind: str, *values: Any) -> None:
    """A line for the coordinator; a sentence that makes it too long, the last of ``values``, is cut."""
    line = json.dumps([node_name(), kind, *values])
    while len(MARK) + len(line) > LINE and isinstance(values[-1], str):
        values = (*values[:-1], values[-1][: len(values[-1]) * 3 // 4])
        line = json.dumps([node_name(), kind, *values])
    sys.stdout.write(f"{MARK}{line}\n")  # at once: several threads speak
    sys.stdout.flush()


def heard(line: str) -> tuple[str, str, list[Any]] | None:
    """(node, kind, values) of a line that ``say`` has written; None for any other."""
    if not line.startswith(MARK):
        return None
    try:
        node, kind, *values = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return str(node), str(kind), values
