"""Fits the constants of train/plan/speed.py to published throughput tables; prints the error on held-out table rows.

  python -m benchmarks.fit_throughput            prints the errors
  python -m benchmarks.fit_throughput --write    also writes train/plan/speed.json

The fit minimises squared relative errors, without negative constants, for each GPU type. It holds out two rows of every
five, by their index in the table. Rows of other systems are predicted too, but never fitted.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np

from train.plan.speed import FITTED, FITTED_AS, Job, parts

TABLE = Path(__file__).with_name("throughput") / "published.csv"
HELD_OUT = (1, 3)
FITTED_SOURCE = "llm-foundry"
SHARE = {"none": 0.0, "selective": 0.5, "full": 1.0}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def job(row: dict[str, str]) -> Job:
    number = {key: float(row[key]) for key in row if key not in ("source", "gpu", "recompute")}
    micro = number["micro"] * number["seq_len"]
    return Job(
        gpu=row["gpu"].split("_")[0],
        gpus=int(number["gpus"]),
        parameters=number["parameters"],
        matrices=number["matrices"],
        hidden=int(number["hidden"]),
        layers=int(number["layers"]),
        vocab=int(number["vocab"]),
        seq_len=number["seq_len"],
        micro_tokens=micro,
        step_tokens=micro * number["accumulation"],
        recomputed=SHARE[row["recompute"]],
        stage=int(number["stage"]),
    )


def errors(rows: list[dict[str, str]], constants: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Predicted over published throughput, minus 1."""
    seconds = np.array([float(np.dot(constants, parts(job(row)))) for row in rows])
    return 1.0 / seconds / np.array([float(row["tokens_per_second_per_gpu"]) for row in rows]) - 1.0


def fit(rows: list[dict[str, str]]) -> list[float]:
    published = np.array([float(row["tokens_per_second_per_gpu"]) for row in rows])
    matrix = np.array([parts(job(row)) for row in rows]) * published[:, None]
    kept = list(range(matrix.shape[1]))
    while True:  # remove parts with a negative time, the most negative first
        solution, *_ = np.linalg.lstsq(matrix[:, kept], np.ones(len(rows)), rcond=None)
        if solution.min() >= 0.0:
            break
        kept.pop(int(solution.argmin()))
    constants = dict(zip(kept, solution.tolist(), strict=True))
    return [float(f"{constants.get(place, 0.0):.5g}") for place in range(matrix.shape[1])]


def report(name: str, found: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, float]:
    size = np.abs(found)
    line = {
        "rows": len(size),
        "median": round(float(np.median(size)), 4),
        "p90": round(float(np.quantile(size, 0.9)), 4),
        "within_10_percent": round(float(np.mean(size <= 0.1)), 3),
        "worst": round(float(size.max()), 4),
    }
    print(f"{name:24} " + "  ".join(f"{key} {value:g}" for key, value in line.items()))
    return line


def main() -> int:
    table, result = read(TABLE), {}
    for gpu in sorted(set(FITTED_AS.values())):
        rows = [row for row in table if row["gpu"].startswith(gpu) and row["source"] == FITTED_SOURCE]
        held = [row for place, row in enumerate(rows) if place % 5 in HELD_OUT]
        seen = [row for place, row in enumerate(rows) if place % 5 not in HELD_OUT]
        constants = fit(seen)
        jobs = [job(row) for row in rows]
        report(f"{gpu} fitted", errors(seen, constants))
        result[gpu] = {
            "constants": constants,
            "held_out": report(f"{gpu} held out", errors(held, constants)),
            "range": {
                name: [min(getattr(job, name) for job in jobs), max(getattr(job, name) for job in jobs)]
                for name in ("parameters", "gpus", "micro_tokens")
            },
        }
        others = [row for row in table if row["gpu"].startswith(gpu) and row["source"] != FITTED_SOURCE]
        for row, error in zip(others, errors(others, constants) if others else [], strict=True):
            print(f"  {row['source']} {row['gpus']} GPUs, {row['tokens_per_second_per_gpu']} tokens/s: {error:+.1%}")
    if "--write" in sys.argv:
        FITTED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
