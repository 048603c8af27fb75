"""Makes a step's report into the metrics of metrics.jsonl and W&B."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from train.loop import StepReport
from train.state import TrainState

GIB = 1024**3


def count(state: TrainState, report: StepReport, names: Sequence[str]) -> None:
    """Add a finished step to the run's totals."""
    plan = report.plan
    state.step = plan.index + 1
    state.samples += plan.samples
    state.tokens += plan.tokens
    state.targets += plan.targets
    state.skipped += report.skipped
    state.seconds += report.seconds
    for name, samples, tokens in zip(names, plan.source_samples, plan.source_tokens, strict=True):
        state.source_samples[name] = state.source_samples.get(name, 0) + samples
        state.source_tokens[name] = state.source_tokens.get(name, 0) + tokens


@dataclass(frozen=True)
class Work:
    """The FLOPs of a step on all ranks together, and the peak FLOP/s of a device."""

    world: int
    flops: float
    recomputed: float
    """FLOPs of recomputation in the backward pass; not in ``flops``."""
    peak: float
    """FLOP/s of one device; 0 if unknown."""


def step_metrics(
    state: TrainState,
    report: StepReport,
    *,
    names: Sequence[str],
    seq_len: int,
    work: Work,
) -> dict[str, float]:
    """One line of metrics.

    Model and hardware FLOPs utilisation (Chowdhery et al. 2022, appendix B) count computed tokens: packing leaves no
    padding, and a shared prefix counts once. Tokens and samples per second count every sample with its prefix.
    """
    plan, seconds = report.plan, max(report.seconds, 1e-9)
    metrics = {
        **{f"train/{name}": value for name, value in report.figures.items()},
        "train/grad_norm": report.grad_norm,
        "train/lr": report.lr,
        "train/tokens": state.tokens,
        "train/samples": state.samples,
        "train/skipped_steps": state.skipped,
        "guard/spikes": state.spikes,
        "guard/rollbacks": state.rollbacks,
        "guard/undone_updates": state.undone,
        "perf/step_time_s": report.seconds,
        "perf/tokens_per_second": plan.tokens / seconds,
        "perf/tokens_per_second_per_gpu": plan.tokens / seconds / work.world,
        "perf/samples_per_second": plan.samples / seconds,
        "perf/data_wait_fraction": report.data_seconds / seconds,
        "data/padding_fraction": 1.0 - plan.positions / max(1, plan.filled * seq_len),
        "data/shared_fraction": 1.0 - plan.positions / max(1, plan.tokens),
        "data/supervised_fraction": plan.targets / max(1, plan.tokens),
    }
    if work.peak:
        metrics["perf/mfu"] = work.flops / seconds / (work.peak * work.world)
        metrics["perf/hfu"] = (work.flops + work.recomputed) / seconds / (work.peak * work.world)
    return metrics | _source_metrics(state, names, dict(zip(names, plan.epochs, strict=True)))


def _source_metrics(state: TrainState, names: Sequence[str], epochs: Mapping[str, float]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in names:
        metrics[f"data/tokens/{name}"] = state.source_tokens[name]
        metrics[f"data/share/{name}"] = state.source_samples[name] / max(1, state.samples)
        metrics[f"data/epoch/{name}"] = epochs[name]
    return metrics


def peak_memory_gib() -> float:
    """Peak memory so far, GiB: device memory on a GPU, otherwise resident host memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
