"""Writes docs/scaling.md: the predictions of ``launch plan --sweep`` for three runs on 1 to 512 nodes of 8 GPUs, for
several speeds of links, and beside published rows of several numbers of GPUs.

python -m benchmarks.scaling            writes docs/scaling.md
python -m benchmarks.scaling --plot     also writes its pictures (needs matplotlib)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.fit_throughput import FITTED_SOURCE, HELD_OUT, TABLE, job, read
from launch.plan.plot import plot
from launch.plan.sweep import Point, lines, sweep
from train.plan.speed import FITTED_AS, fitted
from train.plan.speed import parts as parts_of_time

DOCS = Path(__file__).parents[1] / "docs"
NODES = "nodes=1,8,64,512"
OPEN = ("zero=auto", "model.recompute=auto", "batch.micro_size=auto")
STEPS = "schedule.max_steps=1000"
MEASURED = "## What Corral costs each rank besides the model"
"""The heading of the page's last section, which benchmarks/fake_cluster.py writes."""
RUNS = {
    "8b-full": ("Llama 3.1 8B, every parameter", ("experiment=alpaca_llama3_8b_full", "batch.global_size=512")),
    "8b-lora": ("Llama 3.1 8B, adapters", ("experiment=alpaca_llama3_8b_lora", "batch.global_size=512")),
    "70b-full": (
        "Llama 3.1 70B, every parameter",
        ("experiment=alpaca_llama3_8b_full", "model.path=meta-llama/Llama-3.1-70B", "batch.global_size=512"),
    ),
}
HEAD = """# How runs scale

Made by `python -m benchmarks.scaling`: predictions of `python -m launch plan --sweep nodes=1,8,64,512`, not
measurements. Nodes have 8 H100 of 80 GiB and 8 x 400 Gb/s; rows are 2048 tokens; the global batch is 512 rows, and
grows where there are more GPUs than rows; hours are for 1000 steps. `GiB` is per process at its peak, every token
taken for a target; `hidden`: whether ZeRO-3's traffic hides under compute; `good`: the share of the time that makes
progress when GPUs fail as often as in the training of Llama 3. No speed (`-`) is given far outside the published rows
that the constants were fitted to (8 to 512 GPUs, 0.76 to 65 B parameters); adapters were not among them. The median
error on rows held out of the fit is {median:.1%} (H100), the worst {worst:.1%}: `python -m benchmarks.fit_throughput`.
The last section is measured.
"""


def points(name: str) -> list[Point]:
    return sweep([*RUNS[name][1], "cluster.gpus_per_node=8", *OPEN, STEPS], NODES)


LINKS = "cluster.node_gbit_per_s=3200,1600,800,400,100"
LINKED = {
    "8B, every parameter, 8 nodes": ("8b-full", ("cluster.nodes=8",)),
    "8B, every parameter, 64 nodes": ("8b-full", ("cluster.nodes=64",)),
    "70B, every parameter, 64 nodes": ("70b-full", ("cluster.nodes=64",)),
    "70B, 64 nodes, weights whole in every node (hpZ)": (
        "70b-full",
        ("cluster.nodes=64", "zero=3", "+zero.deepspeed.zero_hpz_partition_size=8"),
    ),
}
LINKS_HEAD = """## What the links change

The network of a node in Gbit/s, all its cards together; stage, recomputation and micro-batch are the plan's choice. The
speed is that of the fitted rows, which had 3,200 Gbit/s, with the time that slower links add by calculation (half of
what travels beside compute hides, an assumption): no published row has such links, so nothing here was compared.
"""
WEAK_HEAD = """## More GPUs, the same work for each: published, and by the plan

Published rows of one job on several numbers of GPUs ([rows](../benchmarks/throughput/published.csv)), the tokens per
second and GPU of the largest divided by those of the smallest, and the plan's. `*`: the larger row was held out of the
fit, or is of another system, which was never fitted. The best published systems keep 97 to 98% from 8 to 128 GPUs.
"""


def linked() -> str:
    """Tables over the speed of links."""
    tables = []
    for title, (name, more) in LINKED.items():
        overrides = [*RUNS[name][1], "cluster.gpus_per_node=8", *OPEN, STEPS, *more]
        table = "\n".join(lines("node_gbit_per_s", sweep(overrides, LINKS)))
        tables.append(f"{title}\n\n```\n{table}\n```\n")
    return "\n".join([LINKS_HEAD, *tables])


def weak() -> str:
    """The table of published rows of one job on several numbers of GPUs."""
    rows = read(TABLE)
    fitted_rows: dict[str, list[dict[str, str]]] = {}
    jobs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row["source"] == FITTED_SOURCE:
            fitted_rows.setdefault(row["gpu"].split("_")[0], []).append(row)
        same = ("source", "gpu", "parameters", "seq_len", "micro", "recompute", "accumulation", "stage")
        jobs.setdefault(tuple(row[key] for key in same), []).append(row)
    table = ["  parameters  GPU   GPUs           published   plan  off"]
    for key, found in jobs.items():
        found.sort(key=lambda row: int(row["gpus"]))
        few, many = found[0], found[-1]
        if int(many["gpus"]) < 4 * int(few["gpus"]):
            continue
        gpu = many["gpu"].split("_")[0]
        seen = any(row is many and place % 5 not in HELD_OUT for place, row in enumerate(fitted_rows[gpu]))
        published = float(many["tokens_per_second_per_gpu"]) / float(few["tokens_per_second_per_gpu"])
        planned = rate(many) / rate(few)
        size = f"{float(many['parameters']) / 1e9:.2f} B"
        table.append(
            f"{' ' if seen else '*'} {size:>9}  {gpu}  {few['gpus']:>3} to {many['gpus']:<4} {published:>12.1%} "
            f"{planned:>6.1%} {planned - published:>+5.1%}  {key[0]}"
        )
    return WEAK_HEAD + "\n```\n" + "\n".join(table) + "\n```\n"


def rate(row: dict[str, str]) -> float:
    """Tokens per second and GPU by the plan's constants."""
    constants = fitted()[FITTED_AS[row["gpu"].split("_")[0]]]["constants"]
    return 1.0 / float(np.dot(constants, parts_of_time(job(row))))


def measured() -> str:
    """The section MEASURED as it stands in the page."""
    _, heading, text = (DOCS / "scaling.md").read_text(encoding="utf-8").partition(MEASURED)
    return heading + text


def page() -> str:
    """The text of docs/scaling.md: predictions made anew, and the measured section as it is."""
    parts = [HEAD.format(**fitted()["h100"]["held_out"])]
    for name, (title, overrides) in RUNS.items():
        table = "\n".join(lines("nodes", points(name)))
        command = " ".join(overrides)
        picture = f"![memory and speed by nodes](scaling-{name}.png)"
        settings = f"`{command}`, stage, recomputation and micro-batch `auto`"
        parts.append(f"## {title}\n\n{settings}\n\n```\n{table}\n```\n\n{picture}\n")
    return "\n".join([*parts, linked(), weak(), measured()])


def main() -> int:
    (DOCS / "scaling.md").write_text(page(), encoding="utf-8")
    if "--plot" in sys.argv:
        for name in RUNS:
            plot("nodes", points(name), DOCS / f"scaling-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
