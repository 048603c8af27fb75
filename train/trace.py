"""Traces a run's activation memory in one step of its model on fake tensors; it allocates and loads nothing.

  python -m train.trace experiment=NAME [overrides]      prints JSON

The trace builds the configured model with 2 and with 4 blocks, runs its forward and backward pass on tensors without
data, and counts every storage that is allocated or freed. All blocks are alike, so the peak of a phase grows linearly
with their number. ``launch plan --trace`` runs this module in another process, because it needs torch.

An operation that keeps and allocates the same tensors as a variable-length flash kernel (Dao et al. 2022, section 3:
query, key, value, output and one fp32 log-sum-exp per query and head) replaces attention: CPU kernels keep more.
"""

from __future__ import annotations

import json
import math
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from conf.compose import config_from_argv
from conf.errors import leave_with_code
from conf.schema import RunConfig
from data_prep.tokenizer.growth import GROWN
from train import tuning
from train.attention.exchange import Exchange
from train.batches.batch import Batch, Predicted
from train.families import family, shape_of
from train.loading.pretrained import known_config, new_model
from train.model.recompute import set_recompute
from train.objectives.head import traced
from train.objectives.sft import token_nll_sum
from train.plan import number, read_model_config, settle, slice_tokens

FEW, MORE = 2, 4
"""Blocks of the two traces; both even, so that every second block is recomputed in the same places."""
PHASES = ("loss", "deepest", "rest")
"""loss: forward, loss and head until the gradient reaches the last block; deepest: the backward pass of that block;
rest: everything after it."""


class Live(TorchDispatchMode):
    """Counts the bytes of all live storages that operators allocated, and their peak in every phase."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.phase = 0, "loss"
        self.peaks = dict.fromkeys(PHASES, 0)
        self._seen: dict[int, weakref.ref[Any]] = {}

    def watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen or tensor.device.type == "meta":
            return
        self._seen[key] = weakref.ref(storage, lambda _: self._dead(key, size))
        self.now += size
        self.peaks[self.phase] = max(self.peaks[self.phase], self.now)

    def _dead(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks[phase], self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.watch(tensor)
        return result


class _Flash(torch.autograd.Function):
    """Keeps and allocates the tensors of a flash kernel: query [T, H, D], key and value [T, K, D] -> [T, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(query.shape)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return tuple(tensor.new_empty(tensor.shape) for tensor in ctx.saved_tensors[:3])


def _attend(
    _module: nn.Module,
    query: Any,
    key: Any,
    value: Any,
    _mask: Any,
    *,
    exchange: Exchange | None = None,
    **_: object,
) -> tuple[Any, None]:
    """transformers' attention interface over batch [B, H, L, D], flattened to one row of B * L tokens."""
    if exchange is not None:
        query, key, value = exchange.to_heads(query, key, value)
    batch, length = query.shape[0], query.shape[2]
    flat = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    out = _Flash.apply(*flat)  # type: ignore[no-untyped-call]
    if exchange is not None:
        return exchange.to_tokens(out)[None], None
    return out.unflatten(0, (batch, length)), None


def meta_model(cfg: RunConfig, model: Mapping[str, Any], layers: int) -> nn.Module:
    """The configured model with ``layers`` blocks, tuning and recomputation applied.

    The model is built on the meta device; fake weights follow later, because modules with fake weights cannot be
    converted.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("corral_traced", _attend)
    kind = family(model["model_type"])
    values = {key: value for key, value in model.items() if key not in ("model_type", "architectures", "torch_dtype")}
    values |= {key: layers for key in kind.keys.layers if key in model} | dict.fromkeys(kind.dropouts, 0.0)
    values.pop("layer_types", None)  # one entry per block
    grown = values.pop(GROWN, None)
    config = known_config(model["model_type"], **values)
    config.use_cache, config.pad_token_id = False, None
    dtype = torch.bfloat16 if cfg.model.dtype == "bf16" else torch.float32
    implementation = {"attn_implementation": "corral_traced"} if kind.interface else {}
    with torch.device("meta"):
        bare = new_model(config, dtype=dtype, **implementation)
        tuned = tuning.apply(bare, cfg.tuning, kind, seed=cfg.seed).train()
    if grown is not None:
        tuning.train_tables(tuned, cfg.tuning)
    set_recompute(tuned, cfg.model.recompute, block_class=kind.block_class)
    _fuse_dropout(tuned)
    return tuned


class _FusedDropout(nn.Module):
    """Dropout with a boolean mask, as on CUDA; on a CPU the mask has the input's dtype."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(hidden, self.probability, True)[0]


def _fuse_dropout(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and child.p:
                setattr(module, name, _FusedDropout(child.p))


def materialise(model: nn.Module) -> None:
    """Give the parameters and buffers of a meta model fake storages (tied ones share one), and drop every gradient.

    Call under FakeTensorMode with a model made outside that mode: a buffer made inside is neither meta nor fake.
    """
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                old = id(parameter)
                replacement = made.get(old)
                if replacement is None:
                    replacement = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                    made[old] = replacement
                module._parameters[name] = replacement  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]


def step_peaks(cfg: RunConfig, model: Mapping[str, Any], layers: int, targets: int) -> dict[str, int]:
    """Peak live bytes of every phase of one micro-batch, without weights and gradients.

    Every gradient is dropped at once, because sharded data parallelism moves it to buffers that the plan counts apart.
    """
    block, network = family(model["model_type"]).block_class, meta_model(cfg, model, layers)
    with FakeTensorMode():
        materialise(network)
        live = Live()
        for tensor in [*network.parameters(), *network.buffers()]:
            live.watch(tensor)
        base = live.now
        _mark_phases([module for module in network.modules() if type(module).__name__ == block], live)
        with live:
            one_micro_batch(network, cfg, targets)
    return {phase: peak - base for phase, peak in live.peaks.items()}


def one_micro_batch(network: nn.Module, cfg: RunConfig, targets: int) -> None:
    """Run the forward and backward pass of the training loop."""
    with traced():
        loss = token_nll_sum(network, fake_batch(cfg, targets), targets_only=cfg.compute.targets_only_head)
    (loss / 2).backward()  # type: ignore[no-untyped-call]


def targets(cfg: RunConfig, supervised: float) -> int:
    """Targets of a micro-batch of full rows, where ``supervised`` is their share of the tokens; at most one slice."""
    tokens = number(cfg.batch.micro_size) * cfg.data.seq_len
    return max(1, min(slice_tokens(cfg, tokens), math.ceil(tokens * supervised)))


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _mark_phases(blocks: list[nn.Module], live: Live) -> None:
    """Enter a phase when the gradient of a block's output arrives, which starts the block's backward pass."""

    def enter_at(phase: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad and torch.is_grad_enabled():
                hidden.register_hook(lambda gradient: live.enter(phase))

        return hook

    blocks[-1].register_forward_hook(enter_at("deepest"))
    blocks[-2].register_forward_hook(enter_at("rest"))


def fake_batch(cfg: RunConfig, targets: int) -> Batch:
    """A micro-batch of full rows, or one rank's slice of it. Call under FakeTensorMode."""
    rows, length = number(cfg.batch.micro_size), cfg.data.seq_len
    flat, slices = cfg.data.pack == "exact", cfg.compute.sequence_parallel
    shape = (1, slice_tokens(cfg, rows * length)) if flat else (rows, length)
    ids = torch.zeros(shape, dtype=torch.long)
    return Batch(
        input_ids=ids,
        labels=torch.zeros(shape, dtype=torch.long),
        position_ids=torch.zeros(shape, dtype=torch.long),
        attention_mask=None,
        segments=torch.zeros(rows + 1, dtype=torch.int32) if flat else None,
        longest=length,
        uids=(),
        tokens=rows * length,
        targets=targets,
        weight=float(targets),
        predicted=Predicted(*(torch.zeros(targets, dtype=torch.long) for _ in range(2))) if flat else None,
        exchange=Exchange(slices, torch.clone) if slices > 1 else None,
    )


@dataclass(frozen=True)
class Traced:
    phases: dict[str, float]
    """Peak bytes of every phase, for all blocks of the model."""

    @property
    def peak(self) -> float:
        return max(self.phases.values())


def trace(cfg: RunConfig, model: Mapping[str, Any], supervised: float = 1.0) -> Traced:
    """Bytes of the activations, logits and their gradients of one micro-batch, extrapolated to all blocks."""
    wanted = targets(cfg, supervised)
    layers = shape_of(model).layers
    few, more = (step_peaks(cfg, model, count, wanted) for count in (FEW, MORE))
    slopes = {phase: (more[phase] - few[phase]) / (MORE - FEW) for phase in PHASES}
    # In the trace of two blocks, the second last block is also the first, which keeps less if everything before it is
    # frozen; a line through it would be too steep. Later moments add no more per block than the last block adds.
    slopes["rest"] = min(slopes["rest"], slopes["deepest"])
    return Traced({phase: few[phase] + slopes[phase] * (layers - FEW) for phase in PHASES})


def main() -> int:
    cfg, own = config_from_argv(sys.argv[1:], command="train.trace", extra={"supervised": "share of targets"})
    cfg = settle(cfg, nodes=cfg.cluster.nodes, per_node=cfg.cluster.gpus_per_node)
    traced_step = trace(cfg, read_model_config(cfg.model), float(own.get("supervised", "1")))
    print(json.dumps({"phases": traced_step.phases, "peak": traced_step.peak}))
    return 0


if __name__ == "__main__":
    leave_with_code(main)
