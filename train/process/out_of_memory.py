"""What a GPU held when it ran out of memory, beside what the plan says: two files in run_dir/logs.

memory-ATTEMPT-rank-N.txt      the plan's parts and the allocator's figures: read it first
memory-ATTEMPT-rank-N.pickle   every segment and block of the allocator: ``python -m torch.cuda._memory_viz
                               segment_plot FILE -o memory.html`` draws them. Blocks have no stacks: keeping those for
                               every allocation of a run costs time, which ``debug=profile`` spends for three steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from conf.durable import write_whole
from conf.errors import ConfigError, MissingInput, OutOfMemory
from conf.schema import RunConfig
from conf.whole_numbers import ceil_div
from train.plan import GIB, Memory, corpus_of, plan, read_model_config
from train.ranks.group import Ranks

FIGURES = ("allocated_bytes.all.current", "allocated_bytes.all.peak", "reserved_bytes.all.current", "num_alloc_retries")
"""Of ``torch.cuda.memory_stats``. Reserved and not allocated is lost to fragments."""


def planned_memory(cfg: RunConfig, model: Mapping[str, Any], ranks: Ranks) -> Memory:
    """The plan of ``cfg``, which has no ``auto``, for the ranks that there are."""
    nodes = ceil_div(ranks.world, ranks.local_world)
    cluster = replace(cfg.cluster, nodes=nodes, gpus_per_node=ranks.world // nodes)
    return plan(replace(cfg, cluster=cluster), model, corpus_of(cfg)).chosen


@dataclass(frozen=True)
class Witness:
    """Closed with the run's exit code, when the record is written and what the run held is still there."""

    cfg: RunConfig
    ranks: Ranks
    attempt: Callable[[], int]

    def __call__(self, code: int) -> None:
        """After an out-of-memory error of a GPU, write both files and say where, in one sentence."""
        if code != OutOfMemory.code or self.ranks.device.type != "cuda":
            return
        logs = Path(self.cfg.run_dir) / "logs"
        logs.mkdir(exist_ok=True)
        name = logs / f"memory-{self.attempt()}-rank-{self.ranks.rank}"
        write_whole(Path(f"{name}.txt"), self.text())
        torch.cuda.memory._dump_snapshot(f"{name}.pickle")  # type: ignore[no-untyped-call]
        print(
            f"corral: {name}.txt compares the memory of rank {self.ranks.rank} with the plan's; "
            f"`python -m torch.cuda._memory_viz segment_plot {name}.pickle -o memory.html` draws what was held",
            file=sys.stderr,
            flush=True,
        )

    def text(self) -> str:
        """The plan's parts and the allocator's figures, GiB."""
        stats = torch.cuda.memory_stats(self.ranks.device)
        figures = {key: stats.get(key, 0) / (GIB if "bytes" in key else 1) for key in FIGURES}
        lines = [f"the allocator of {self.ranks.device}, GiB", *_lines(figures), ""]
        try:
            planned = planned_memory(self.cfg, read_model_config(self.cfg.model), self.ranks).gib()
        except (ConfigError, MissingInput) as error:
            return "\n".join([*lines, f"no plan: {error}", ""])
        phase = planned.pop("phase")
        parts = _lines({key: value for key, value in planned.items() if value})
        # The peak is all of the device; torch's allocator holds neither context nor what it cannot use.
        return "\n".join([*lines, f"the plan, GiB, at its peak ({phase}); states and device are sums", *parts, ""])


def _lines(figures: Mapping[str, float]) -> list[str]:
    width = max(map(len, figures))
    return [f"  {key:<{width}} {value:10.3f}" for key, value in figures.items()]
