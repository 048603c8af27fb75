"""The plan's prediction of a process's memory, as one bar of its parts."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import CorralError
from conf.frozen import load_config
from train.plan import GIB, Memory, corpus_of, is_open, plan, read_model_config
from train.report.page import figure
from train.report.plots import style_of
from train.report.reading import RunRecord

WIDTH, HEIGHT = 1000, 44


def planned_memory(run: RunRecord) -> str:
    """The figure; an empty string if this machine cannot read the run's config or model."""
    try:
        cfg = load_config(run.run_dir / "run.yaml")
        if is_open(cfg):
            return ""
        world = next((event["world"] for event in run.events if "world" in event), 1)
        sized = replace(cfg, cluster=replace(cfg.cluster, nodes=1, gpus_per_node=world))
        memory = plan(sized, read_model_config(cfg.model), corpus_of(cfg)).chosen
    except CorralError:
        return ""
    sizes = parts(memory)
    legend = {name: _size(size) for name, size in sizes.items()}
    title = f"Planned peak memory per process ({memory.phase}): {_size(memory.device)}"
    return figure(title, bar(sizes), legend)


def parts(memory: Memory) -> dict[str, float]:
    """Bytes by name; their sum is ``memory.device``."""
    return {
        "weights": memory.weights,
        "gradients": memory.gradients + memory.accumulation,
        "optimizer": memory.optimizer,
        "gathered": memory.gathered,
        "activations": memory.activations + memory.passing,
        "logits": memory.logits,
        "buffers, context, fragmentation": memory.buckets + memory.context + memory.fragmentation,
    }


def bar(sizes: dict[str, float]) -> str:
    """An ``<svg>`` of the parts side by side, in the legend's colours; a part's width is proportional to its bytes."""
    whole, left, drawn = sum(sizes.values()), 0.0, []
    for index, size in enumerate(sizes.values()):
        right = left + WIDTH * size / whole
        drawn.append(
            f'<polyline class="{style_of(index)}" style="stroke-width:{HEIGHT}" '
            f'points="{left:.1f},{HEIGHT / 2:g} {right:.1f},{HEIGHT / 2:g}"/>'
        )
        left = right
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="planned memory">{"".join(drawn)}</svg>'


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
