"""Runs one phase of ``data_engine`` for one loader, in a separate process with the loader's Python.

``python benchmarks/data_phases.py LOADER PHASE FOLDER``: FOLDER contains the loader's data; the process prints its
measurements as one line of JSON. Imports come before the clock starts.

write   writes the raw corpus in FOLDER/../raw in the loader's format
speed   measures the time to the first batch, then tokens per second, and memory
seek    reads 90% of an epoch and saves the state; prints the samples of its first ten batches and of the next ten
resume  continues from that state: prints the time to the first batch, and the samples of ten batches
ranks   prints the samples of this rank ($RANK of $WORLD_SIZE) in its first ten steps
once    prints this rank's samples in all steps of an epoch with every sample once
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Iterator
from importlib import import_module, metadata
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_corpus import read
from benchmarks.data_peers import LOADERS, Job

TOKENS = int(float(os.environ.get("BENCH_TOKENS", "10e6")))
SECONDS = 0.5
"""Minimum to read per turn, or all there is; the fastest loader takes a fifth of a second for the tokens."""
STEPS = 10
PACKAGES = ("grain", "datasets", "mosaicml-streaming", "numpy", "pyarrow", "torch")


def own_memory() -> float:
    """MiB of this process and its children: anonymous memory, and their part of shared memory segments."""
    total = 0
    for pid in (os.getpid(), *children(os.getpid())):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith(("Anonymous:", "Pss_Shmem:")):
                total += int(line.split()[1])
    return total / 1024


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="utf-8").split():
            yield int(child)
            yield from children(int(child))


def pairs(loader: Any, step: list[Any]) -> list[list[int]]:
    """(source, row) of every sample of a step."""
    return [[source, row] for each in step for source, row, _ in loader.samples(each)]


def speed(name: str, folder: Path) -> dict[str, float]:
    before, began = own_memory(), time.perf_counter()
    loader = LOADERS[name](Job(folder))
    steps = iter(loader)
    step = next(steps)
    first = time.perf_counter() - began
    seconds, tokens, positions = 0.0, 0, 0
    while tokens < TOKENS or seconds < SECONDS:
        began = time.perf_counter()
        if (step := next(steps, None)) is None:
            break
        seconds += time.perf_counter() - began
        tokens += sum(length for row in step for *_, length in loader.samples(row))
        positions += len(step)
    return {"first_ms": first * 1e3, "rate": tokens / seconds, "mib": own_memory() - before, "tokens": tokens,
            "per_row": tokens / positions}  # fmt: skip


def seek(name: str, folder: Path) -> dict[str, Any]:
    job = Job(folder)
    loader, left = LOADERS[name](job), 0.9 * job.draws
    steps, begin = iter(loader), []
    while left > 0:
        step = pairs(loader, next(steps))
        left -= len(step)
        if len(begin) < STEPS:
            begin.append(sorted(step))
    (folder / "state.pickle").write_bytes(pickle.dumps(loader.state()))
    return {"begin": begin, "next": [sorted(pairs(loader, step)) for step in islice(steps, STEPS)]}


def resume(name: str, folder: Path) -> dict[str, Any]:
    state = pickle.loads((folder / "state.pickle").read_bytes())
    began = time.perf_counter()
    loader = LOADERS[name](Job(folder, state=state))
    steps = iter(loader)
    step = next(steps)
    seconds = time.perf_counter() - began
    after = [sorted(pairs(loader, each)) for each in (step, *islice(steps, STEPS - 1))]
    return {"resume_ms": seconds * 1e3, "next": after}


def ranks(name: str, folder: Path) -> dict[str, Any]:
    loader = LOADERS[name](Job(folder, rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"])))
    return {"steps": [pairs(loader, step) for step in islice(loader, STEPS)]}


def once(name: str, folder: Path) -> dict[str, Any]:
    job = Job(folder, order="once", rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))
    loader = LOADERS[name](job)
    return {"steps": [pairs(loader, step) for step in loader]}


def write(name: str, folder: Path) -> dict[str, Any]:
    raw = folder.parent / "raw"
    LOADERS[name].write(raw, folder)
    rows = sum(len(source) for source in read(raw).values())
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {"rows": rows, "versions": {package: found[package] for package in PACKAGES if package in found}}


PHASES = {each.__name__: each for each in (write, speed, seek, resume, ranks, once)}


def main(name: str, phase: str, folder: Path) -> None:
    for module in LOADERS[name].modules:
        import_module(module)
    print(json.dumps(PHASES[phase](name, folder)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
