"""Judges what the nodes have said: which node is not fit for the run, and why. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

CLOCK_S = 5.0
"""Clocks may differ so much: half a second comes from a node's line that waits for a busy machine."""
GENERAL = {"run_dir": 73, "config": 78, "together": 76}
"""Exit code of a fault that is of no single node, by kind; 69 for the others."""
GIB = 2**30


@dataclass(frozen=True)
class Fault:
    nodes: tuple[str, ...]
    """Empty for a fault of no single node."""
    reason: str
    code: int = 76

    def __str__(self) -> str:
        return f"{', '.join(self.nodes)}: {self.reason}" if self.nodes else self.reason


@dataclass
class Node:
    """What one node has said."""

    facts: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    offset: float = 0.0
    """Seconds by which its clock is ahead of the coordinator's."""
    devices: int = 0
    """GPUs that torch sees."""
    bits: list[str] = field(default_factory=list)
    """A digest per device."""


def look_at(nodes: Mapping[str, Node], needed_bytes: int = 0) -> list[Fault]:
    """The faults of ``nodes``, of which the first is the head, by what they have found out without torch."""
    return [
        *own_faults(nodes),
        *disks(nodes, needed_bytes),
        *clocks(nodes),
        *different(nodes, "code", lambda *_: "its code is not that of the other nodes; bring its clone up to date"),
        *different(nodes, "config", _config),
        *different(nodes, "corpus", lambda mine, _: f"it has {'another' if mine else 'no'} corpus at data.prepared; "
                   "put data.prepared on a file system that all nodes share, or copy it there again"),
        *different(nodes, "versions", _versions),
        *different(nodes, "gpus", lambda mine, other: f"its GPUs are {_models(mine)} and those of the others are "
                   f"{_models(other)}; ask SLURM for one kind (--constraint)"),
    ]  # fmt: skip


def own_faults(nodes: Mapping[str, Node]) -> list[Fault]:
    """What the nodes have found wrong by themselves: the same on all, or on all but the head, is of no single node."""
    found: list[Fault] = []
    for kind in dict.fromkeys(kind for node in nodes.values() for kind in node.faults):
        having = [name for name, node in nodes.items() if kind in node.faults]
        if is_general(having, nodes):
            where = "on every node" if len(having) == len(nodes) else f"on {', '.join(having)}"
            found.append(Fault((), f"{where}: {nodes[having[0]].faults[kind]}", GENERAL.get(kind, 69)))
        else:
            found += [Fault((name,), nodes[name].faults[kind]) for name in having]
    return found


def is_general(having: Sequence[str], nodes: Mapping[str, Node]) -> bool:
    others = len(nodes) - 1
    return others > 0 and (len(having) > others or (others > 1 and [*having] == [*nodes][1:]))


def disks(nodes: Mapping[str, Node], needed: int) -> list[Fault]:
    """``needed``: bytes of the checkpoints that are to come, 0 if unknown."""
    short = {name: node.facts["run_dir"] for name, node in nodes.items() if node.facts.get("run_dir", needed) < needed}
    if not short:
        return []
    reason = (
        f"run_dir has {min(short.values()) / GIB:.2f} GiB free, and checkpoint.keep + 1 checkpoints need "
        f"{needed / GIB:.2f} GiB more; free space, lower checkpoint.keep, or set another run_dir"
    )
    if len(short) == len(nodes):
        return [Fault((), reason, 74)]
    return [Fault(tuple(short), reason)]


def clocks(nodes: Mapping[str, Node]) -> list[Fault]:
    """Nodes whose clock is off from the middle one; of two, from the head's."""
    offsets = [node.offset for node in nodes.values()]
    middle = median(offsets) if len(offsets) > 2 else offsets[0]
    return [
        Fault(
            (name,), f"its clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}; have it follow a time server"
        )
        for name, node in nodes.items()
        if abs(off := node.offset - middle) > CLOCK_S
    ]


def different(nodes: Mapping[str, Node], kind: str, reason: Callable[[Any, Any], str]) -> list[Fault]:
    """The nodes whose fact ``kind`` is not what most have."""
    facts = {name: node.facts[kind] for name, node in nodes.items() if kind in node.facts}
    usual = most(list(facts.values())) if facts else None
    return [Fault((name,), reason(fact, usual)) for name, fact in facts.items() if fact != usual]


def most(values: Sequence[Any]) -> Any:
    """What more than half of ``values`` are, else the first of them, which is the head's."""
    keys = [repr(value) for value in values]
    key, count = Counter(keys).most_common(1)[0]
    return values[keys.index(key)] if 2 * count > len(keys) else values[0]


def trials(nodes: Mapping[str, Node], processes: int, *, gpus: bool) -> list[Fault]:
    """The faults of nodes whose devices torch has tried."""
    few = {name: node.devices for name, node in nodes.items() if node.devices < (processes if gpus else 0)}
    for name, seen in few.items():
        nodes[name].faults["torch"] = (
            f"torch sees {seen} GPUs, and {processes} were requested; compare its driver with torch's CUDA"
        )
    if few:
        return own_faults(nodes)
    usual = most([each for node in nodes.values() for each in node.bits])
    found = []
    for name, node in nodes.items():
        if wrong := [str(place) for place, each in enumerate(node.bits) if each != usual]:
            what = f"GPU {', '.join(wrong)} there gives" if node.devices else "its CPU gives"
            reason = f"{what} other bits for the same matrix product; another kind of device, or a damaged one"
            found.append(Fault((name,), reason))
    return found


def silent(names: Sequence[str], every: Sequence[str]) -> list[Fault]:
    """Faults of nodes that said nothing while others did."""
    if len(names) == len(every):
        return [Fault((), "no node answers; the words of srun and of the nodes stand above")]
    return [Fault((name,), "it gives no answer; its last words, if any, stand above") for name in names]


def not_met(nodes: Mapping[str, Node], absent: Collection[str]) -> list[Fault]:
    """Who could not reach the first node. If none of several others could, it is that one's fault."""
    lost = [name for name, node in nodes.items() if "reach" in node.faults]
    first = next(iter(nodes))
    if first not in lost and is_general(lost, nodes):
        return [Fault((first,), f"no other node reaches it ({nodes[lost[0]].faults['reach']})")]
    missing = [name for name in nodes if name in absent and name not in lost]
    return [
        *own_faults(nodes),
        *(Fault((name,), "it did not come to the first node; look at its network") for name in missing),
    ]


def _config(mine: Mapping[str, str], usual: Mapping[str, str]) -> str:
    sections = [key for key in {**usual, **mine} if mine.get(key) != usual.get(key)]
    return f"its config has other values in {', '.join(sections)}; compare its conf/ and its environment"


def _versions(mine: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    pairs = [f"{key} {mine.get(key)} (the others {usual[key]})" for key in usual if mine.get(key) != usual[key]]
    return f"it has {', '.join(pairs)}; use one environment on all nodes"


def _models(names: Sequence[str]) -> str:
    return ", ".join(names) or "none that nvidia-smi lists"
