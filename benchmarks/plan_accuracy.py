"""Compares the plan's formulas for activation memory with the model's code, case by case.

  python -m benchmarks.plan_accuracy             compares with train/trace.py, fake tensors of the whole step
  python -m benchmarks.plan_accuracy --torch     also compares with torch's MemTracker

It compares all models of conf/model/ at their full widths; the trace extrapolates to their number of layers. It takes
about a minute, and two more for MemTracker, which traces two blocks.
"""

from __future__ import annotations

import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.hooks import RemovableHandle

from conf.compose import compose
from conf.schema import FullTuning, LoraTuning, RunConfig
from train.families import known_models, shape_of
from train.plan.activations import step_peaks as moments_of
from train.plan.answer import policy
from train.plan.memory import work_of
from train.trace import FEW, materialise, meta_model, one_micro_batch, targets, trace

LAYERS = {"gpt2": "n_layer", "bloom": "n_layer"}
"""What a config calls its blocks, where it is not ``num_hidden_layers``."""
MODELS: dict[str, dict[str, Any]] = {path.rsplit("/", 1)[-1].lower(): model for path, model in known_models().items()}
MODELS["gpt2"] |= {"n_positions": 8192}
MODELS["pythia-160m"] |= {"max_position_embeddings": 8192}


@dataclass(frozen=True)
class Case:
    name: str
    """Of MODELS."""
    method: Literal["full", "lora"]
    recompute: Literal["none", "selective", "full"]
    seq_len: int
    supervised: float
    """Share of the tokens that are targets."""
    head: Literal["targets", "all"] = "targets"
    dtype: Literal["bf16", "fp32"] = "bf16"
    dropout: float = 0.0
    layers: int | None = None
    """Number of blocks; None: the model's number."""

    @property
    def model(self) -> dict[str, Any]:
        found = MODELS[self.name]
        return (
            found
            if self.layers is None
            else found | {LAYERS.get(found["model_type"], "num_hidden_layers"): self.layers}
        )


CASES = (
    Case("llama-3.1-8b", "full", "none", 2048, 0.4),
    Case("llama-3.1-8b", "full", "selective", 4096, 0.4),
    Case("llama-3.1-8b", "full", "full", 8192, 0.1),
    Case("llama-3.1-8b", "full", "full", 1024, 0.02),
    Case("llama-3.1-8b", "lora", "none", 2048, 0.4),
    Case("llama-3.1-8b", "lora", "selective", 8192, 0.02),
    Case("llama-3.1-8b", "lora", "full", 8192, 0.4),
    Case("llama-3.1-8b", "lora", "full", 4096, 0.02),
    Case("llama-3.1-8b", "lora", "none", 2048, 0.05, dropout=0.1),
    Case("llama-3.2-1b", "full", "none", 2048, 1.0, head="all"),
    Case("llama-3.2-1b", "full", "selective", 2048, 0.02, dtype="fp32"),
    Case("qwen3-0.6b-base", "full", "none", 4096, 0.4),
    Case("qwen3-0.6b-base", "full", "full", 1024, 0.02),
    Case("qwen3-0.6b-base", "lora", "full", 8192, 0.02),
    Case("gpt2", "full", "none", 1024, 0.4),
    Case("gpt2", "full", "full", 4096, 0.02),
    Case("gpt2", "lora", "none", 2048, 0.02),
    Case("gpt2", "lora", "full", 4096, 0.02),
    Case("pythia-160m", "full", "none", 2048, 0.02),
    Case("pythia-160m", "full", "full", 8192, 0.02),
    Case("pythia-160m", "lora", "selective", 4096, 0.4),
    Case("pythia-160m", "full", "none", 2048, 1.0, head="all"),
    Case("bloom-560m", "full", "none", 1024, 1.0),
    Case("bloom-560m", "lora", "full", 2048, 1.0),
    Case("mistral-7b-v0.1", "full", "none", 2048, 0.02),
    Case("mistral-7b-v0.1", "lora", "full", 2048, 0.4),
    Case("qwen2.5-0.5b", "full", "full", 4096, 0.02),
    Case("qwen2.5-0.5b", "lora", "none", 2048, 0.02),
    Case("olmo-2-0425-1b", "full", "none", 2048, 0.4),
    Case("olmo-2-0425-1b", "full", "selective", 2048, 0.02, dtype="fp32"),
    Case("olmo-2-0425-1b", "lora", "full", 2048, 0.02),
    Case("olmo-2-0425-1b", "lora", "none", 4096, 0.02),
    Case("gemma-2-2b", "full", "none", 2048, 0.02),
    Case("gemma-2-2b", "full", "selective", 2048, 0.02, dtype="fp32"),
    Case("gemma-2-2b", "lora", "full", 2048, 0.4),
    Case("gemma-3-1b-pt", "full", "none", 2048, 0.02),
    Case("gemma-3-1b-pt", "full", "full", 4096, 0.02),
    Case("gemma-3-1b-pt", "lora", "selective", 4096, 0.02),
    Case("phi-2", "full", "none", 2048, 0.4),
    Case("phi-2", "full", "full", 4096, 0.02),
    Case("phi-2", "lora", "selective", 4096, 0.02),
    Case("phi-3-mini-4k-instruct", "full", "selective", 4096, 0.02),
    Case("phi-3-mini-4k-instruct", "full", "full", 4096, 0.02),
    Case("phi-3-mini-4k-instruct", "lora", "full", 2048, 0.4),
)


def config(case: Case) -> RunConfig:
    """The run of ``case``; the formulas get its model separately, as a mapping."""
    packed = case.model["model_type"] != "bloom"
    data = [f"data.pack={'exact' if packed else 'none'}", f"data.seq_len={case.seq_len}"]
    cfg = compose(["model=llama32_1b", "batch.global_size=128", *data])
    tuning = LoraTuning(method="lora", dropout=case.dropout) if case.method == "lora" else FullTuning(method="full")
    return replace(
        cfg,
        tuning=tuning,
        model=replace(cfg.model, recompute=case.recompute, dtype=case.dtype),
        compute=replace(cfg.compute, targets_only_head=case.head == "targets"),
    )


def closed(case: Case) -> float:
    """Peak bytes of a micro-batch from the formulas."""
    cfg, model, shape = config(case), case.model, shape_of(case.model)
    work = work_of(cfg, shape, case.supervised)
    moments = moments_of(model, shape, work, policy(cfg.model.recompute))
    return max(each.total for each in moments.values())


def traced(case: Case) -> float:
    """Peak bytes from the trace of 2 and 4 blocks."""
    return trace(config(case), case.model, case.supervised).peak


def targets_of(case: Case) -> int:
    return targets(config(case), case.supervised)


def mem_tracker(case: Case) -> float:
    """Peak bytes of a micro-batch without weights, from torch's MemTracker; about two seconds per block.

    MemTracker sets hooks on the gradients of all parameters, but frozen parameters have none.
    """
    network = meta_model(config(case), case.model, shape_of(case.model).layers)
    with FakeTensorMode():
        materialise(network)
        tracker = MemTracker()
        tracker.track_external(network)
        base = sum(each.untyped_storage().nbytes() for each in {id(p): p for p in network.parameters()}.values())
        with _hooks_where_gradients_are(), tracker:
            one_micro_batch(network, config(case), targets_of(case))
        peak = tracker.get_tracker_snapshot("peak")
    return float(sum(parts["Total"] for parts in peak.values())) - base


@contextmanager
def _hooks_where_gradients_are() -> Iterator[None]:
    """Inside the context, torch ignores a hook on the gradient of a frozen tensor instead of refusing it."""
    with ExitStack() as stack:
        for name in ("register_hook", "register_post_accumulate_grad_hook"):
            hook = getattr(torch.Tensor, name)

            def guarded(tensor: torch.Tensor, function: Any, hook: Any = hook) -> Any:
                return hook(tensor, function) if tensor.requires_grad else RemovableHandle(OrderedDict())

            stack.enter_context(mock.patch.object(torch.Tensor, name, guarded))
        yield


def line(case: Case, predicted: float, measured: float) -> str:
    head = "" if case.head == "targets" else " all logits"
    wet = f" dropout {case.dropout}" if case.dropout else ""
    return (
        f"{case.name:23}{case.method:5}{case.recompute:10}{case.seq_len:5} {case.supervised:5.0%} {case.dtype} "
        f"{predicted / 2**30:8.3f} {measured / 2**30:8.3f} GiB {predicted / measured - 1:+7.2%}{head}{wet}"
    )


def compared(measure: Callable[[Case], float], cases: Iterable[Case]) -> list[float]:
    """Print the formulas and ``measure`` for every case, and a summary of the errors; return the errors."""
    errors = []
    for case in cases:
        predicted, measured = closed(case), measure(case)
        errors.append(predicted / measured - 1)
        print(line(case, predicted, measured), flush=True)
    size = sorted(abs(error) for error in errors)
    print(f"{len(size)} cases: median {statistics.median(size):.2%}, worst {size[-1]:.2%}, lowest {min(errors):+.2%}")
    return errors


def main() -> int:
    print("The formulas compared with the trace:")
    compared(traced, CASES)
    if "--torch" in sys.argv:
        print(f"The formulas compared with torch's MemTracker, {FEW} blocks:")
        compared(mem_tracker, (replace(case, layers=FEW) for case in CASES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
