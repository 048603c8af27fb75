"""What two ranks of DeepSpeed really keep and exchange, against the formulas of train/plan, for every ZeRO stage."""

from __future__ import annotations

import collections
import gc
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from conf.schema import BatchConfig, FullTuning, LoraTuning, ModelConfig, OptimConfig, ZeroConfig
from tests.distributed import run_distributed
from train.distributed import Ranks

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
BUCKET, WORLD, MICRO_BATCHES = 200_000, 2, 2
AMPLE = 1_000_000_000
CASES = [
    (0, "full", "fp32", AMPLE),
    (1, "full", "bf16", AMPLE),
    (2, "full", "bf16", AMPLE),
    (2, "full", "fp32", AMPLE),
    (3, "full", "bf16", AMPLE),
    (3, "full", "bf16", 1),
    (2, "lora", "bf16", AMPLE),
    (3, "lora", "bf16", AMPLE),
]
"""Stage, method, dtype, and parameters that stage 3 may hold whole at once."""
ALLOWED, SMALL = 0.01, 4096
"""Of every figure; and bytes of flags and norms that no formula counts."""


@dataclass
class Seen:
    trained: int
    frozen: int
    idle: int = 0
    """Bytes alive after a step, without the gradients that some stages keep for ever."""
    full: int = 0
    """Bytes alive after the last backward pass of a step."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Payload of each kind of collective in one step."""


def observe(ranks: Ranks, stage: int, method: str, dtype: str, live_parameters: int) -> Seen:
    from transformers import AutoConfig, AutoModelForCausalLM

    from train import tuning
    from train.engine import Engine, deepspeed_settings
    from train.models import family
    from train.trace import Live
    from train.tuning import trainable

    counted: collections.Counter[str] = collections.Counter()

    class Watch(Live):
        """Also counts what goes to the collectives, which are operators too."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(func).startswith("c10d."):
                counted[str(func).split(".")[1]] += payload(str(func), args)
            return super().__torch_dispatch__(func, types, args, kwargs)

    optim = OptimConfig()
    zero = ZeroConfig(
        stage=stage,  # type: ignore[arg-type]
        bucket_elements=BUCKET,
        persistence_threshold=0,
        prefetch_elements=min(BUCKET, live_parameters),
        max_live_parameters=live_parameters,
    )
    settings = deepspeed_settings(
        model=ModelConfig(path="x", dtype=dtype),  # type: ignore[arg-type]
        zero=zero,
        optim=optim,
        batch=BatchConfig(global_size=MICRO_BATCHES * WORLD, micro_size=1),
        world=WORLD,
        on_cpu=True,
    )
    with Watch() as live:
        config = AutoConfig.for_model(**CONFIG)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
        chosen: Any = LoraTuning(method="lora", rank=8) if method == "lora" else FullTuning(method="full")
        model = tuning.apply(model.train(), chosen, family("llama"), seed=0)
        parameters = trainable(model)
        seen = Seen(sum(each.numel() for each in parameters.values()), sum(each.numel() for each in model.parameters()))
        seen.frozen -= seen.trained
        engine = Engine(model, parameters, settings=settings, optim=optim, zero=zero, ranks=ranks)
        for _ in range(2):
            counted.clear()
            for index in range(MICRO_BATCHES):
                ids = torch.zeros((1, 16), dtype=torch.long)
                loss = engine.module(input_ids=ids, labels=ids, use_cache=False).loss
                engine.accumulate(loss, last=index == MICRO_BATCHES - 1)
                del loss
            seen.full = at_rest(live)
            engine.step(1e-4)
            seen.idle = at_rest(live)
    seen.bytes = dict(counted)
    return seen


def at_rest(live: Any) -> int:
    """Bytes that stay: gloo's threads may let go of a tensor a moment after its collective has returned."""
    readings = []
    for _ in range(5):
        gc.collect()
        readings.append(int(live.now))
        time.sleep(0.05)
    return min(readings)


def payload(name: str, args: Any) -> int:
    """Bytes of the whole tensor of one collective: what is reduced, or what a gather ends with."""
    first: Any = args[1] if "reduce_scatter" in name else args[0]
    tensors: list[torch.Tensor] = []
    stack = [first]
    while stack:
        each = stack.pop()
        if isinstance(each, torch.Tensor):
            tensors.append(each)
        elif isinstance(each, list | tuple):
            stack += each
    return sum(each.numel() * each.element_size() for each in tensors)


def observe_all(ranks: Ranks, cases: list[tuple[int, str, str, int]]) -> list[Seen]:
    return [observe(ranks, *case) for case in cases]


@pytest.mark.slow
def test_states_and_traffic_are_what_two_ranks_keep_and_send() -> None:
    from train.plan.communication import kept_whole, traffic
    from train.plan.memory import states

    results = run_distributed(observe_all, WORLD, CASES, timeout=280)
    wrong = []
    for case, seen in zip(CASES, results[0], strict=True):
        stage, _, dtype, live_parameters = case
        element = 2 if dtype == "bf16" else 4
        held = states(seen.trained, element * seen.frozen, stage=stage, world=WORLD, dtype=dtype)
        bucket = (
            element * min(BUCKET, seen.trained) if stage == 3 else 0
        )  # the others give theirs back after the backward pass
        kept = {0: 0.0, 1: held.accumulation, 2: 0.0, 3: held.gradients + held.accumulation}[stage]
        planned = traffic(
            trained=seen.trained,
            whole=element * (seen.trained + seen.frozen),
            stage=stage,
            dtype=dtype,
            micro_batches=MICRO_BATCHES,
            world=WORLD,
            stays=kept_whole(seen.trained + seen.frozen, CONFIG["vocab_size"] * CONFIG["hidden_size"], live_parameters),
        )
        pairs = {
            "after backward": (held.device + bucket, seen.full),
            "after the step": (held.weights + held.optimizer + kept + bucket, seen.idle),
        }
        for kind in ("all_reduce", "reduce_scatter", "all_gather"):
            flat = kind.replace("_", "")
            moved = sum(size for name, size in seen.bytes.items() if flat in name.replace("_", ""))
            pairs[kind] = (getattr(planned, kind), moved)
        wrong += [
            f"{case} {what}: planned {wanted:.0f}, seen {found} ({seen.bytes})"
            for what, (wanted, found) in pairs.items()
            if found != pytest.approx(wanted, rel=ALLOWED, abs=SMALL)
        ]
    assert not wrong, "\n".join(wrong)
