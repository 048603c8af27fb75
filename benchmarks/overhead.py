"""Measures a run's cost beyond its engine, on a CPU: ``python benchmarks/overhead.py FOLDER``; part of bench-train.

Corral's loop (stream, collate, step, ledger, metrics) and the same engine on ready tensors take turns in one process,
with one update of one row per turn; the first of a pair alternates. Pairs of updates vary by more than the overhead, so
the benchmark also measures inside the loop the time in which neither model nor engine works. It profiles one more
update: the time of the operators, and the speed of its matrix products compared with this machine's fastest product.
FOLDER/overhead.json gets all figures.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).parents[1]))

PAIRS, WARM_UP = int(os.environ.get("BENCH_PAIRS", "60")), 3


def main(folder: Path) -> None:
    from benchmarks.gpu_worker import updates
    from benchmarks.peers import assembled

    count = WARM_UP + PAIRS
    run = assembled(folder, "overhead", "batch.global_size=1", f"schedule.max_steps={count}")
    inside = [0.0]
    run.objective = Watched(run.objective, inside)
    run.engine.accumulate, run.engine.step = (watched(f, inside) for f in (run.engine.accumulate, run.engine.step))
    loops = {variant: updates(run, variant, count) for variant in ("corral", "bare")}
    found = []
    for number in range(count):
        seconds, work = {}, 0.0
        for variant in sorted(loops, reverse=bool(number % 2)):
            inside[0] = 0.0
            seconds[variant] = next(loops[variant]).seconds
            work = inside[0] if variant == "corral" else work
        found.append([seconds["corral"], seconds["bare"], 1 - work / seconds["corral"]])
    result = {"updates": found[WARM_UP:], "profile": profiled(loops["corral"])}
    (folder / "overhead.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)  # gloo's threads may abort the interpreter's exit


class Watched:
    """An objective that adds the seconds of its calls to ``inside``."""

    def __init__(self, objective: Any, inside: list[float]) -> None:
        self.denominator = objective.denominator
        self.sums = watched(objective.sums, inside)


def watched(call: Callable[..., Any], inside: list[float]) -> Callable[..., Any]:
    """``call``, which also adds its seconds to ``inside``; on a CPU its work is complete when it returns."""

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            inside[0] += time.perf_counter() - began

    return timed


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "softmax over the vocabulary": ("aten::_log_softmax", "aten::exp_"),
}


def profiled(loop: Iterator[Any]) -> dict[str, float]:
    """The seconds of one update by kind of operator, its FLOPs, and the FLOP/s of the fastest of twenty products."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as watched:
        update = next(loop)
    seconds = {each.key: each.self_cpu_time_total / 1e6 for each in watched.key_averages()}
    parts = {kind: sum(seconds.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    square, best = torch.randn(2048, 2048), float("inf")
    product = torch.empty_like(square)
    for _ in range(20):
        began = time.perf_counter()
        torch.mm(square, square, out=product)
        best = min(best, time.perf_counter() - began)
    return {**parts, "whole": update.seconds, "flops": update.flops, "peak": 2 * 2048**3 / best}


def where(profile: dict[str, float]) -> str:
    """A sentence with the time of one update and the possible gain."""
    whole, products = profile["whole"], profile["matrix products"]
    shares = ", ".join(f"{kind} {profile[kind] / whole:.0%}" for kind in KINDS)
    return (
        f"one update of one row takes {whole:.2f} s under the profiler: {shares}; its matrix products reach "
        f"{profile['flops'] / products / 1e9:.0f} of the {profile['peak'] / 1e9:.0f} GFLOP/s of a product of 2048 x "
        f"2048 x 2048 here; its products alone at that speed would take {profile['flops'] / profile['peak']:.2f} s"
    )


def told(found: list[list[float]]) -> str:
    """A sentence with the overhead and its confidence interval."""
    over = sorted(corral / bare - 1 for corral, bare, _ in found)
    half = 0.98 * len(over) ** 0.5  # ranks of the median's 95% interval: n / 2 -+ 1.96 sqrt(n) / 2
    low, high = over[max(0, round(len(over) / 2 - half))], over[min(len(over) - 1, round(len(over) / 2 + half))]
    outside = statistics.median(share for *_, share in found)
    return (
        f"overhead of corral over the bare loop, {len(over)} pairs of updates of one row in one process: median "
        f"{statistics.median(over):+.2%} (95% interval of the median {low:+.2%} to {high:+.2%}); the loop spends "
        f"{outside:.2%} of an update of one row outside model and engine"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
