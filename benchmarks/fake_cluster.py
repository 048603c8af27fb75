"""What Corral itself costs each rank at 8 to 4,096 ranks, in a fake cluster without a model; a few minutes, no GPU.

python -m benchmarks.fake_cluster            prints the table, and what is over a limit
python -m benchmarks.fake_cluster --write    also writes it into docs/scaling.md

One process plays the ranks in turn: ``fake_ranks`` says how, ``fake_phases`` what they do.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.fake_checkpoints import checkpointing, shapes_of, state_bytes
from benchmarks.fake_phases import DEVICE_SECONDS, MODEL, ending, global_size, planning, start_up, stepping
from benchmarks.fake_ranks import LOCAL_WORLD, Spent, free_memory_folder, watched
from benchmarks.made import ALPACA
from benchmarks.scaling import DOCS, MEASURED

WORLDS = (8, 64, 512, 4096)
STEP_MS = 1.0
"""Limit of Corral's own part of a step, on every rank, up to LIMITED ranks."""
LIMITED = 512
ROWS = 1_000_000
DIVISOR = 256
"""Matrices have one of so many of the model's rows: 380 MB of weights and moments instead of 96 GB."""

Figures = dict[str, float]
"""By the label of the table's row."""


@dataclass(frozen=True)
class Size:
    """How large the played run is."""

    rows: int = ROWS
    """Samples that are planned."""
    divisor: int = DIVISOR
    memory: bool = True
    """Whether to trace memory, in a second pass."""
    stages: Sequence[int] = field(default=(1, 3))


def measure(world: int, size: Size) -> Figures:
    """Every figure at ``world`` ranks."""
    with tempfile.TemporaryDirectory(dir=free_memory_folder()) as folder:
        return dict(_figures(Path(folder), world, size))


def _figures(folder: Path, world: int, size: Size) -> Iterator[tuple[str, float]]:
    started = start_up(folder / "timed", world)
    yield from _both("start-up: CPU ms", started, lambda spent: spent.seconds * 1e3)
    yield from _both("start-up: opens", started, lambda spent: spent.opens)
    if size.memory:
        traced = start_up(folder / "traced", world, trace=True)
        yield from _both("start-up: MiB", traced, lambda spent: spent.peak / 2**20)
    planned = planning(world, rows=size.rows)
    yield "step: samples of all ranks", planned.steps[0].samples
    yield "step: planning, CPU ms, ahead", planned.seconds * 1e3
    yield "step: waiting for the plan, ms", planned.waited * 1e3
    yield "step: a plan handed over, kB", planned.handed / 1e3
    steps = {rank: stepping(folder, world, rank, planned.steps) for rank in watched(world)}
    yield "step: own part, CPU ms, first rank", steps[0].seconds * 1e3
    yield "step: own part, CPU ms, others", max(each.seconds for rank, each in steps.items() if rank) * 1e3
    yield "step: the collective as played, CPU ms", max(each.collective for each in steps.values()) * 1e3
    yield "step: opens, first rank", round(steps[0].opens, 1)
    yield "step: opens, others", max(round(each.opens, 1) for rank, each in steps.items() if rank)
    yield "step: gathered kB per rank", steps[0].gathered / 1e3
    for stage in size.stages:
        yield from _of_checkpoints(folder, world, stage, size)
    ended = ending(folder, world)
    yield from _both("end: opens", ended.ranks, lambda spent: spent.opens)
    yield "end: opens, a rank that fails alone", ended.alone.opens
    yield "end: launcher's decision, CPU ms", ended.settling.seconds * 1e3


def _of_checkpoints(folder: Path, world: int, stage: int, size: Size) -> Iterator[tuple[str, float]]:
    found = checkpointing(folder, world, stage, divisor=size.divisor)
    zero = f"ZeRO-{stage}"
    yield f"{zero}: MANIFEST.json, MB", found.manifest / 1e6
    for name, spent in (("save", found.saving), ("resume", found.restoring)):
        yield from _both(f"{zero} {name}: CPU ms", spent, lambda each: each.seconds * 1e3)
        yield from _both(f"{zero} {name}: opens", spent, lambda each: each.opens)
        yield from _both(f"{zero} {name}: objects received, kB", spent, lambda each: each.received / 1e3)
    yield f"{zero} resume: hashed MB per rank", max(each.hashed for each in found.restoring.values()) / 1e6
    yield f"{zero} resume: state read, MB per rank", max(found.read.values()) / 1e6
    if size.memory:
        traced = checkpointing(folder, world, stage, divisor=size.divisor, trace=True)
        for name, spent in (("save", traced.saving), ("resume", traced.restoring)):
            yield from _both(f"{zero} {name}: MiB", spent, lambda each: each.peak / 2**20)


def _both(label: str, spent: Mapping[int, Spent], figure: Callable[[Spent], float]) -> Iterator[tuple[str, float]]:
    """A figure of the first rank, and the largest of the other watched ranks."""
    yield f"{label}, first rank", figure(spent[0])
    yield f"{label}, others", max(figure(each) for rank, each in spent.items() if rank)


def over_limits(found: Mapping[int, Figures]) -> list[str]:
    """What grows with the ranks and must not, one sentence each.

    Opens are constant per rank. What a rank hashes and reads falls as 1/ranks; a tenth of a megabyte is allowed for
    the heads of files and the random states, which every rank has.
    """
    smallest = min(found)
    wrong = []
    for world, figures in sorted(found.items()):
        for label, value in figures.items():
            first, limit = found[smallest][label], float("inf")
            if label.startswith(("step: own part", "step: waiting")) and world <= LIMITED:
                limit = STEP_MS
            elif ": opens" in label:
                limit = first
            elif label.endswith("MB per rank"):
                limit = 1.05 * first * smallest / world + 0.15
            if value > limit:
                wrong.append(f"{label} at {world} ranks: {value:.4g}, the limit is {limit:.4g}")
    return wrong


def table(found: Mapping[int, Figures]) -> str:
    """One line per figure, one column per number of ranks."""
    worlds = sorted(found)
    width = max(map(len, found[worlds[0]]))
    lines = [f"{'ranks':<{width}}" + "".join(f"{world:>10,}" for world in worlds)]
    for label in found[worlds[0]]:
        lines.append(f"{label:<{width}}" + "".join(f"{_short(found[world][label]):>10}" for world in worlds))
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


SECTION = """{heading}

Made by `python -m benchmarks.fake_cluster --write`: measured, without a model and without a network. One process plays
the ranks of a fake cluster with {local} ranks per node, one after the other, and each runs Corral's own functions on
files in memory. Every rank saves its part of a checkpoint and writes its exit record; the rest is run by the first rank
and three others (the second, the first of the last node, the last), because the others do the same on as much data.
The figures are those of the first rank and of the worst of the three.

- `CPU ms` is CPU time of one core of this computer ({machine}, Python {python}, torch {torch}), so it contains no
  waiting for disks or networks. A step has one collective, which torch's fake backend plays by a copy per rank: on GPUs
  that is the device's work, so it has a line of its own. Steps have {rows} rows of 2,048 tokens, and one row per rank
  where there are more ranks, of samples as short as Alpaca's (median {median} tokens), which is the worst case. Every
  rank plans all of a step, ahead in another thread, while the device is played by a sleep of {device:g} s;
  `waiting` is what the next step then waits for its plan.
- `opens` counts opened files and folders, and listed folders: Python's by an audit hook, those of safetensors by its
  calls. `MiB` is the most that Python and numpy held at once for a rank, `objects received` what collectives of pickled
  objects brought to it.
- Checkpoints have the {parameters} parameters of {model}, their matrices with a {divisor}th of the rows: {state:.0f} MB
  of weights and moments. Each rank reads its own, and hashes as much. Beside them, its files hold random states and
  the names of the tensors, {head:.2f} MB under ZeRO-3 whatever the number of ranks.

```
{table}
```

The benchmark says what is over a limit: up to {limited} ranks a step's own part takes {limit:g} ms on every rank, and
so does the wait for its plan; a rank's opens do not depend on the number of ranks, and what it hashes and reads falls
as 1 / ranks (which `tests/benchmarks/test_fake_cluster.py` holds). What still grows: the first rank alone writes and
reads a MANIFEST that under ZeRO-3 has a line per parameter and rank, the launcher alone reads an exit record per rank,
and every rank plans the whole global batch. Without a launcher only the first rank that ends with a code merges
records, and reads those of the first ones; on a file system without symbolic links every rank would read them all.
"""


def section(found: Mapping[int, Figures]) -> str:
    """The section of docs/scaling.md."""
    shapes, most = shapes_of(DIVISOR), found[LIMITED]
    return SECTION.format(
        heading=MEASURED,
        local=LOCAL_WORLD,
        machine=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        rows=global_size(1),
        median=round(ALPACA["alpaca"][1]),
        parameters=len(shapes),
        model=MODEL.partition("/")[2],
        divisor=DIVISOR,
        state=state_bytes(shapes) / 1e6,
        device=DEVICE_SECONDS,
        head=most["ZeRO-3 resume: hashed MB per rank"] - most["ZeRO-3 resume: state read, MB per rank"],
        table=table(found),
        limited=LIMITED,
        limit=STEP_MS,
    )


def main() -> int:
    measure(WORLDS[0], Size(divisor=2048, memory=False))  # imports, and warms the caches
    found = {}
    for world in WORLDS:
        found[world] = measure(world, Size())
        print(f"{world} ranks measured", file=sys.stderr, flush=True)
    print(table(found))
    for sentence in over_limits(found):
        print(f"over the limit: {sentence}")
    if "--write" in sys.argv:
        page = DOCS / "scaling.md"
        predictions = page.read_text(encoding="utf-8").partition(MEASURED)[0].rstrip()
        page.write_text(f"{predictions}\n\n{section(found)}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
