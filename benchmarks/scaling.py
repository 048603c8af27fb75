"""Write docs/scaling.md: what ``launch plan --sweep`` says of three runs on 1 to 512 nodes of 8 GPUs.

python -m benchmarks.scaling            writes docs/scaling.md
python -m benchmarks.scaling --plot     also the pictures beside it (needs matplotlib)
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.plan_plot import plot
from launch.plan_sweep import Point, lines, sweep
from train.plan.speed import fitted

DOCS = Path(__file__).parents[1] / "docs"
NODES = "nodes=1,8,64,512"
OPEN = ("zero=auto", "model.recompute=auto", "batch.micro_size=auto")
STEPS = "schedule.max_steps=1000"
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
"""


def points(name: str) -> list[Point]:
    return sweep([*RUNS[name][1], "cluster.gpus_per_node=8", *OPEN, STEPS], NODES)


def page() -> str:
    """The text of docs/scaling.md."""
    parts = [HEAD.format(**fitted()["h100"]["held_out"])]
    for name, (title, overrides) in RUNS.items():
        table = "\n".join(lines("nodes", points(name)))
        command = " ".join(overrides)
        picture = f"![memory and speed by nodes](scaling-{name}.png)"
        settings = f"`{command}`, stage, recomputation and micro-batch `auto`"
        parts.append(f"## {title}\n\n{settings}\n\n```\n{table}\n```\n\n{picture}\n")
    return "\n".join(parts)


def main() -> int:
    (DOCS / "scaling.md").write_text(page(), encoding="utf-8")
    if "--plot" in sys.argv:
        for name in RUNS:
            plot("nodes", points(name), DOCS / f"scaling-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
