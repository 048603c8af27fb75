"""Compares the data engine with Grain, Hugging Face datasets and Mosaic Streaming: ``make bench-data``; no GPU.

One rank reads the same 262,002 random samples (68.6 M tokens, ``data_corpus``) as a weighted mixture of six sources, in
the format of every loader (``data_peers``). A new process measures every figure (``data_phases``). The loaders take
turns, A B C A B C, so that a busy machine affects all alike. The benchmark checks each loader's promises about order on
the samples that it returns. Every peer has an environment ``.venv-bench-NAME``; a peer that cannot be installed is
named and left out. It takes about twelve minutes on two cores.
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
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data_corpus
from benchmarks.data_table import Found, show

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
"""The corpus for an epoch with every sample once has rows / SMALL samples."""
PATIENCE_S = 300

Process = subprocess.Popen[str]


def python_of(name: str) -> Path | None:
    """The interpreter of a loader; makes its environment if missing. If that fails, prints the reason, returns None."""
    if not REQUIREMENTS[name]:
        return Path(sys.executable)
    folder = ROOT / f".venv-bench-{name.partition('-')[0]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, encoding="utf-8"
        )
        if not made.returncode:
            command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
            made = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if made.returncode:
            reason = (made.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{name}: left out, because pip cannot install {' '.join(REQUIREMENTS[name])}: {reason}")
            return None
        (folder / "complete").touch()
    return python


def start(name: str, phase: str, folder: Path, *, rank: int = 0, world: int = 1, port: int = 0) -> Process:
    """Start one phase of a loader as one rank; ``folder`` contains the loaders' data."""
    (folder / name).mkdir(exist_ok=True)
    ids = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {key: str(value) for key, value in ids.items()} | {"MASTER_ADDR": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    command = [str(python_of(name)), str(ROOT / "benchmarks" / "data_phases.py"), name, phase, str(folder / name)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def result(process: Process) -> Any:
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"corral: {process.args} did not finish within {PATIENCE_S} s")
    if process.returncode:
        sys.exit(f"corral: {process.args} failed:\n{errors}")
    return json.loads(output.splitlines()[-1])


def phase(name: str, what: str, folder: Path) -> Any:
    return result(start(name, what, folder))


def on_ranks(name: str, what: str, folder: Path, world: int) -> list[list[Any]]:
    """The steps of every rank; the ranks run at the same time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start(name, what, folder, rank=rank, world=world, port=port) for rank in range(world)]
    return [result(process)["steps"] for process in started]


def measure(folder: Path, names: Iterable[str], *, divisor: int = 1, rounds: int = ROUNDS) -> dict[str, Found]:
    """All figures of the loaders ``names``, for a corpus of rows / ``divisor`` samples."""
    whole, small = folder / "whole", folder / "small"
    data_corpus.make(whole / "raw", divisor=divisor)
    data_corpus.make(small / "raw", divisor=max(divisor, SMALL))
    found = {}
    for name in names:
        written, _ = phase(name, "write", small), phase(name, "write", whole)
        found[name] = Found(written["versions"], written["rows"])
    for _ in range(rounds):
        for name, figures in found.items():
            figures.speeds.append(phase(name, "speed", whole))
    # This part measures no time, so two loaders may run at once.
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda name: follow(name, found[name], whole, small), found))
    for _ in range(rounds):
        for name, figures in found.items():
            figures.resumes.append(phase(name, "resume", whole))
    return found


def follow(name: str, found: Found, whole: Path, small: Path) -> None:
    """Record the loader's samples over an epoch, on several ranks, and at the end of the data."""
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
    print(f"{os.cpu_count()} cores; load average {before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
