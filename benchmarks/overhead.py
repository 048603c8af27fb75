"""What a run costs beyond its engine, on a CPU: ``python benchmarks/overhead.py FOLDER``, as make bench-train calls it.

Corral's loop (plan, collate, step, ledger, metrics) and the same engine over tensors that are there already take turns
in one process, one update of one row each, and which is first alternates. FOLDER/overhead.json gets the pairs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).parents[1]))

PAIRS, WARM_UP = int(os.environ.get("BENCH_PAIRS", "60")), 3


def main(folder: Path) -> None:
    from benchmarks.gpu_worker import updates
    from benchmarks.peers import assembled

    count = WARM_UP + PAIRS
    run = assembled(folder, "overhead", "batch.global_size=1", f"schedule.max_steps={count}")
    loops = {variant: updates(run, variant, count) for variant in ("corral", "bare")}
    pairs = []
    for number in range(count):
        order = sorted(loops, reverse=bool(number % 2))
        seconds = {variant: next(loops[variant]).seconds for variant in order}
        pairs.append([seconds["corral"], seconds["bare"]])
    (folder / "overhead.json").write_text(json.dumps(pairs[WARM_UP:]))
    os._exit(0)  # gloo's threads may abort the interpreter's teardown


def told(pairs: list[list[float]]) -> str:
    """The overhead and how well it is known."""
    over = sorted(corral / bare - 1 for corral, bare in pairs)
    half = 0.98 * len(over) ** 0.5  # ranks of the median's 95% interval: n / 2 -+ 1.96 sqrt(n) / 2
    low, high = over[max(0, round(len(over) / 2 - half))], over[min(len(over) - 1, round(len(over) / 2 + half))]
    return (
        f"overhead of corral over the bare loop, {len(over)} pairs of updates of one row in one process: median "
        f"{statistics.median(over):+.2%} (95% interval of the median {low:+.2%} to {high:+.2%})"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
