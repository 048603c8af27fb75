"""The data engine side by side with Grain, Hugging Face datasets and Mosaic Streaming: ``make bench-data``; no GPU.

The same 262,002 made-up samples (68.6 M tokens, ``data_corpus``) in each loader's own format (``data_peers``), read by
one rank as a weighted mixture of six sources. Every figure is from a process of its own (``data_phases``); the loaders
take turns, A B C A B C, so that a busy machine hurts all alike. What the loaders promise of order is checked on the
samples that they hand out. Peers get environments of their own, ``.venv-bench-NAME``; one that cannot be installed is
named and left out. About twelve minutes on two cores.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data_corpus
from benchmarks.data_table import show

ROOT = Path(__file__).resolve().parents[1]

REQUIREMENTS = {
    "corral": (),
    "grain": ("grain==0.2.18",),
    "grain-elastic": ("grain==0.2.18",),
    "hf": ("datasets==5.2.0",),
    "mosaic": ("mosaicml-streaming==0.13.0",),
}
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
WORLDS = (2, 4)
UNEVEN = 3
SMALL = 50
"""The corpus of the epoch in which every row is wanted once has rows / SMALL rows."""
PATIENCE_S = 300

Process = subprocess.Popen[str]


@dataclass
class Found:
    """What was measured of one loader; a step is a list of (source, row) pairs."""

    versions: dict[str, str]
    rows: int
    """Of the small corpus."""
    speeds: list[dict[str, float]] = field(default_factory=list)
    resumes: list[dict[str, Any]] = field(default_factory=list)
    begin: list[Any] = field(default_factory=list)
    """The first ten steps on one rank."""
    after: list[Any] = field(default_factory=list)
    """The ten steps after 90%, as a loader that was not stopped gives them."""
    ranks: dict[int, list[list[Any]]] = field(default_factory=dict)
    """By number of ranks: the first ten steps of each rank."""
    once: list[list[Any]] = field(default_factory=list)
    """All steps of each of three ranks."""


def python_of(name: str) -> Path | None:
    """The interpreter of a loader, its environment made if it is not there; None if that fails, which is said."""
    if not REQUIREMENTS[name]:
        return Path(sys.executable)
    folder = ROOT / f".venv-bench-{name.partition('-')[0]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
        if not made.returncode:
            command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
            made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            reason = (made.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{name}: left out, {' '.join(REQUIREMENTS[name])} cannot be installed: {reason}")
            return None
        (folder / "complete").touch()
    return python


def start(name: str, phase: str, folder: Path, *, rank: int = 0, world: int = 1, port: int = 0) -> Process:
    """One phase of a loader, as one rank; ``folder`` holds the loaders' data."""
    (folder / name).mkdir(exist_ok=True)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {key: str(value) for key, value in own.items()} | {"MASTER_ADDR": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    command = [str(python_of(name)), str(ROOT / "benchmarks" / "data_phases.py"), name, phase, str(folder / name)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: Process) -> Any:
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"corral: {process.args} took longer than {PATIENCE_S} s")
    if process.returncode:
        sys.exit(f"corral: {process.args} failed:\n{errors}")
    return json.loads(output.splitlines()[-1])


def phase(name: str, what: str, folder: Path) -> Any:
    return result(start(name, what, folder))


def on_ranks(name: str, what: str, folder: Path, world: int) -> list[list[Any]]:
    """The steps of every rank, which run at the same time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start(name, what, folder, rank=rank, world=world, port=port) for rank in range(world)]
    return [result(each)["steps"] for each in started]


def measure(folder: Path, names: Iterable[str], *, divisor: int = 1, rounds: int = ROUNDS) -> dict[str, Found]:
    """All figures of these loaders, for a corpus of rows / ``divisor`` rows."""
    whole, small = folder / "whole", folder / "small"
    data_corpus.make(whole / "raw", divisor=divisor)
    data_corpus.make(small / "raw", divisor=max(divisor, SMALL))
    found = {}
    for name in names:
        written, _ = phase(name, "write", small), phase(name, "write", whole)
        found[name] = Found(written["versions"], written["rows"])
    for _ in range(rounds):
        for name, each in found.items():
            each.speeds.append(phase(name, "speed", whole))
    # Nothing is timed here, so two loaders may be at it at once.
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda name: follow(name, found[name], whole, small), found))
    for _ in range(rounds):
        for name, each in found.items():
            each.resumes.append(phase(name, "resume", whole))
    return found


def follow(name: str, found: Found, whole: Path, small: Path) -> None:
    """What the loader hands out: over an epoch, on several ranks, and at the end of the data."""
    read = phase(name, "seek", whole)
    found.begin, found.after = read["begin"], read["next"]
    found.ranks = {world: on_ranks(name, "ranks", whole, world) for world in WORLDS}
    found.once = on_ranks(name, "once", small, UNEVEN)


def main() -> None:
    names = [name for name in REQUIREMENTS if python_of(name)]
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as folder:
        found = measure(Path(folder), names)
    show(found, Console(width=132))
    print(f"{os.cpu_count()} cores; load average {before:.1f} before, {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
