"""The plan's closed form of activation memory against the model's own code, case by case.

  python -m benchmarks.plan_accuracy             against train/trace.py, fake tensors of the whole step
  python -m benchmarks.plan_accuracy --torch     also against torch's MemTracker

Widths and lengths are real ones; the number of layers too where the trace extrapolates.
"""

from __future__ import annotations

import statistics
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
from train.parameters import shape_of
from train.plan.activations import step_peaks as moments_of
from train.plan.answer import policy
from train.plan.memory import work_of
from train.trace import FEW, materialised, one_micro_batch, step_peaks, targets, trace

LLAMA_1B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
LLAMA_8B = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
QWEN3 = LLAMA_1B | {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "head_dim": 128,
    "vocab_size": 151936,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 8192,
    "vocab_size": 50257,
}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50304,
    "max_position_embeddings": 8192,
}
BLOOM: dict[str, Any] = {"model_type": "bloom", "hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}


@dataclass(frozen=True)
class Case:
    name: str
    model: Mapping[str, Any]
    method: Literal["full", "lora"]
    recompute: Literal["none", "selective", "full"]
    seq_len: int
    supervised: float
    """Share of the tokens that are targets."""
    head: Literal["targets", "all"] = "targets"
    dtype: Literal["bf16", "fp32"] = "bf16"
    dropout: float = 0.0


CASES = (
    Case("llama 8B", LLAMA_8B, "full", "none", 2048, 0.4),
    Case("llama 8B", LLAMA_8B, "full", "selective", 4096, 0.4),
    Case("llama 8B", LLAMA_8B, "full", "full", 8192, 0.1),
    Case("llama 8B", LLAMA_8B, "full", "full", 1024, 0.02),
    Case("llama 8B", LLAMA_8B, "lora", "none", 2048, 0.4),
    Case("llama 8B", LLAMA_8B, "lora", "selective", 8192, 0.02),
    Case("llama 8B", LLAMA_8B, "lora", "full", 8192, 0.4),
    Case("llama 8B", LLAMA_8B, "lora", "full", 4096, 0.02),
    Case("llama 8B", LLAMA_8B, "lora", "none", 2048, 0.05, dropout=0.1),
    Case("llama 1B", LLAMA_1B, "full", "none", 2048, 1.0, head="all"),
    Case("llama 1B", LLAMA_1B, "full", "selective", 2048, 0.02, dtype="fp32"),
    Case("qwen3 0.6B", QWEN3, "full", "none", 4096, 0.4),
    Case("qwen3 0.6B", QWEN3, "full", "full", 1024, 0.02),
    Case("qwen3 0.6B", QWEN3, "lora", "full", 8192, 0.02),
    Case("gpt2", GPT2, "full", "none", 1024, 0.4),
    Case("gpt2", GPT2, "full", "full", 4096, 0.02),
    Case("gpt2", GPT2, "lora", "none", 2048, 0.02),
    Case("gpt2", GPT2, "lora", "full", 4096, 0.02),
    Case("neox 160M", NEOX, "full", "none", 2048, 0.02),
    Case("neox 160M", NEOX, "full", "full", 8192, 0.02),
    Case("neox 160M", NEOX, "lora", "selective", 4096, 0.4),
    Case("neox 160M", NEOX, "full", "none", 2048, 1.0, head="all"),
    Case("bloom 560M", BLOOM, "full", "none", 1024, 1.0),
    Case("bloom 560M", BLOOM, "lora", "full", 2048, 1.0),
)


def config(case: Case) -> RunConfig:
    """The run of ``case``; its model is given to the formulas as a mapping."""
    packed = case.model["model_type"] != "bloom"
    cfg = compose(["model=llama32_1b", f"data.pack={'exact' if packed else 'none'}", f"data.seq_len={case.seq_len}"])
    tuning = LoraTuning(method="lora", dropout=case.dropout) if case.method == "lora" else FullTuning(method="full")
    return replace(
        cfg,
        tuning=tuning,
        model=replace(cfg.model, recompute=case.recompute, dtype=case.dtype),
        compute=replace(cfg.compute, targets_only_head=case.head == "targets"),
    )


def closed(case: Case) -> float:
    """Peak bytes of a micro-batch by the formulas."""
    cfg, model, shape = config(case), case.model, shape_of(case.model)
    work = work_of(cfg, shape, case.supervised)
    moments = moments_of(model, shape, work, policy(cfg.model.recompute))
    return max(each.total for each in moments.values())


def traced(case: Case) -> float:
    """Peak bytes by the trace of 2 and 4 blocks."""
    return trace(config(case), case.model, case.supervised).peak


def targets_of(case: Case) -> int:
    return targets(config(case), case.supervised)


def mem_tracker(case: Case) -> float:
    """Peak bytes of a micro-batch through two blocks by torch's own tracker, weights not counted.

    It hooks the gradients of all parameters, which frozen ones have not.
    """
    with FakeTensorMode():
        network = materialised(config(case), case.model, FEW)
        tracker = MemTracker()
        tracker.track_external(network)
        base = sum(each.untyped_storage().nbytes() for each in {id(p): p for p in network.parameters()}.values())
        with _hooks_where_gradients_are(), tracker:
            one_micro_batch(network, config(case), targets_of(case))
        peak = tracker.get_tracker_snapshot("peak")
    return float(sum(parts["Total"] for parts in peak.values())) - base


@contextmanager
def _hooks_where_gradients_are() -> Iterator[None]:
    """Hooks on the gradient of a frozen tensor are left out instead of refused."""
    with ExitStack() as stack:
        for name in ("register_hook", "register_post_accumulate_grad_hook"):
            hook = getattr(torch.Tensor, name)

            def guarded(tensor: torch.Tensor, function: Any, hook: Any = hook) -> Any:
                return hook(tensor, function) if tensor.requires_grad else RemovableHandle(OrderedDict())

            stack.enter_context(mock.patch.object(torch.Tensor, name, guarded))
        yield


def line(case: Case, predicted: float, measured: float) -> str:
    return (
        f"{case.name:11}{case.method:5}{case.recompute:10}{case.seq_len:6} {case.supervised:5.0%} {case.head:8}"
        f"{case.dtype} {predicted / 2**30:8.3f} {measured / 2**30:8.3f} GiB {predicted / measured - 1:+7.2%}"
    )


def main() -> int:
    errors = []
    for case in CASES:
        predicted, measured = closed(case), traced(case)
        errors.append(predicted / measured - 1)
        print(line(case, predicted, measured), flush=True)
    size = sorted(abs(error) for error in errors)
    print(f"{len(size)} cases: median {statistics.median(size):.2%}, worst {size[-1]:.2%}, lowest {min(errors):+.2%}")
    if "--torch" in sys.argv:
        for case in CASES:
            found = mem_tracker(case) / max(step_peaks(config(case), case.model, FEW, targets_of(case)).values()) - 1
            print(f"{case.name:11}{case.method:5}{case.recompute:10} 2 blocks: MemTracker {found:+.2%} from the trace")
    return 0


if __name__ == "__main__":
    sys.exit(main())
