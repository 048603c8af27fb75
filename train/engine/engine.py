"""DeepSpeed behind five verbs: accumulate, step, gradients, fragments, restore.

DeepSpeed averages gradients over ranks and (unless told otherwise) divides by the accumulation steps. A Corral loss is
already a share of the global batch, sum(nll) / targets of all ranks and micro-batches, so both are undone here and
nobody else knows: ``accumulate`` multiplies by the number of ranks and passes ``scale_wrt_gas=False``.
"""

from __future__ import annotations

# DeepSpeed must be imported before any process group exists: the other order ended in SIGABRT at exit in 6 of 20 runs.
import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed prints a warning per process at import
import deepspeed

from conf.errors import ConfigError, Unavailable
from conf.schema import OptimConfig, ZeroConfig
from train.distributed import GROUP_TIMEOUT, Ranks
from train.engine.fragments import MOMENTS, Fragment, base_optimizer, flat_states, owned_fragments
from train.engine.settings import fitted
from train.plan import number

WRONG_ZERO2 = (((0, 17, 6), (0, 18, 2)), ((0, 18, 3), (0, 19, 3)))
"""DeepSpeed releases with wrong ZeRO-2 gradients (DeepSpeed issues 7718 and 8224)."""


@dataclass(frozen=True)
class StepOutcome:
    grad_norm: float
    """Global norm before clipping; inf or nan if the step was skipped."""
    skipped: bool
    """The gradients were not finite; no weight changed."""


def refuse_wrong_versions(version: str) -> None:
    """Raise Unavailable for DeepSpeed releases known to compute wrong gradients."""
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:3])
    if any(low <= found <= high for low, high in WRONG_ZERO2):
        raise Unavailable(
            f"deepspeed {version} computes wrong ZeRO-2 gradients; use the tested one: pip install deepspeed==0.19.8"
        )


def init_distributed(ranks: Ranks) -> None:
    """Create the process group: NCCL on GPUs, gloo on CPUs; a run without torchrun becomes a group of one."""
    refuse_wrong_versions(deepspeed.__version__)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message="`torch.distributed.*is deprecated"
    )  # DeepSpeed's
    if "MASTER_ADDR" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    on_cpu = ranks.device.type == "cpu"
    if on_cpu:
        # Without this, DeepSpeed compiles a shared-memory op for about 50 CPU-seconds and fails without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", timeout=GROUP_TIMEOUT, verbose=False)


def close_distributed() -> None:
    """Leave the process group, so that no rank waits for one that has finished."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def loading_context(settings: Mapping[str, Any]) -> Iterator[None]:
    """Inside it, ``from_pretrained`` partitions weights as it reads them (stage 3) or does nothing special."""
    if settings["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep = HfDeepSpeedConfig(dict(settings))  # transformers holds a weak reference: it must stay alive
    try:
        yield
    finally:
        del keep


def parameter_groups(parameters: Mapping[str, torch.nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms, biases) without. ``ds_shape`` is the shape under ZeRO-3."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in parameters.values():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (matrices if len(shape) >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _elements(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Of whole parameters, also where stage 3 has cut them."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def _largest_block(model: torch.nn.Module) -> int:
    """Elements of the largest of the model's repeated blocks; of all of it if it has none."""
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each)]
    blocks = [_elements(block.parameters()) for each in lists for block in each]
    return max(blocks, default=_elements(model.parameters()))


class Engine:
    """One optimizer over a model, sharded by DeepSpeed. All methods are collective unless they say otherwise."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        settings: Mapping[str, Any],
        optim: OptimConfig,
        zero: ZeroConfig,
        ranks: Ranks,
    ) -> None:
        if not parameters:
            raise ConfigError("tuning: no parameter is trainable; nothing would be learnt. Check tuning.targets")
        self.ranks, self.stage, self.clip = ranks, number(zero.stage), optim.clip
        self.parameters = dict(parameters)
        optimizer = torch.optim.AdamW(
            parameter_groups(parameters, optim),
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
            fused=ranks.device.type == "cuda" and zero.offload == "none",
        )
        sized = fitted(settings, trained=_elements(parameters.values()), block=_largest_block(model))
        self._deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=sized)
        self.optimizer_steps = 0

    @property
    def module(self) -> torch.nn.Module:
        """The model to call; DeepSpeed's hooks are on it."""
        return self._deepspeed  # type: ignore[no-any-return]

    def accumulate(self, share: torch.Tensor, *, last: bool) -> None:
        """Backward of one micro-batch. ``share``: its part of the global loss, a scalar; ``last``: of this step."""
        engine = self._deepspeed
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(share * self.ranks.world, scale_wrt_gas=False)
        if not last:
            engine.step()  # between boundaries: counts the micro-step, changes nothing

    def step(self, lr: float) -> StepOutcome:
        """Clip and update with learning rate ``lr``; non-finite gradients change nothing on any rank."""
        for group in base_optimizer(self._deepspeed.optimizer).param_groups:
            group["lr"] = lr
        outcome = self._stage0_step() if self.stage == 0 else self._sharded_step()
        self.optimizer_steps += not outcome.skipped
        return outcome

    def _stage0_step(self) -> StepOutcome:
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            for parameter in self.parameters.values():
                parameter.grad = None
            return StepOutcome(float(norm), skipped=True)
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.clip, norm)
        self._deepspeed.step()
        return StepOutcome(float(norm), skipped=False)

    def _sharded_step(self) -> StepOutcome:
        self._deepspeed.step()
        norm = float(self._deepspeed.get_global_grad_norm())
        return StepOutcome(norm, skipped=not self._deepspeed.was_step_applied())

    def gradients(self) -> dict[str, torch.Tensor]:
        """Full fp32 gradients on the CPU by name, between the last ``accumulate`` and ``step``. For proofs only."""
        read: Callable[[torch.nn.Parameter], torch.Tensor | None] = deepspeed.utils.safe_get_full_grad
        found = {}
        for name, parameter in self.parameters.items():
            gradient = read(parameter)
            assert gradient is not None, f"no gradient for {name}"
            found[name] = gradient.detach().float().cpu().clone()
        return found

    def whole(self, parameters: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
        """Inside it, ``parameters`` are whole on every rank (stage 3 gathers them), for reading."""
        if self.stage < 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(parameters)  # type: ignore[no-any-return]

    def fragments(self) -> list[Fragment]:
        """What this rank writes to a checkpoint. Not collective."""
        return list(self._fragments(every=False))

    def _fragments(self, *, every: bool) -> Iterator[Fragment]:
        optimizer, ranks = self._deepspeed.optimizer, self.ranks
        return owned_fragments(self.parameters, optimizer, rank=ranks.rank, world=ranks.world, every=every)

    def restore(
        self, read: Callable[[str, str, int, int], torch.Tensor], shapes: Mapping[str, list[int]], steps: int
    ) -> None:
        """Continue from stored state after ``steps`` updates.

        ``read(name, kind, start, numel)`` returns a 1-D fp32 range of the stored parameter; kind is ``weight`` or a
        moment. Master weights and moments are read where this rank owns them, compute weights everywhere.
        """
        if steps:
            self._create_moments(steps)
        for fragment in self._fragments(every=True):
            fragment.weight.copy_(read(fragment.name, "weight", fragment.start, fragment.numel))
            for kind, moment in fragment.moments.items():
                moment.copy_(read(fragment.name, kind, fragment.start, fragment.numel))
        for name, parameter in self.parameters.items():
            self._set_compute_weight(parameter, lambda name=name: _whole(read, name, shapes[name]))  # type: ignore[misc]
        self._refresh_persistent()
        self.optimizer_steps = steps

    def _create_moments(self, steps: int) -> None:
        base = base_optimizer(self._deepspeed.optimizer)
        for flat in flat_states(self._deepspeed.optimizer):
            on_device = flat.device if base.defaults.get("fused") else torch.device("cpu")
            state: dict[str, torch.Tensor] = {kind: torch.zeros_like(flat.data) for kind in MOMENTS}
            base.state[flat] = {"step": torch.tensor(float(steps), device=on_device), **state}
        if hasattr(self._deepspeed.optimizer, "_hp_optimizer_states_linked"):
            self._deepspeed.optimizer._hp_optimizer_states_linked = False

    def _set_compute_weight(self, parameter: torch.nn.Parameter, value: Callable[[], torch.Tensor]) -> None:
        if self.stage < 3:
            parameter.data.copy_(value())
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if self.ranks.is_main:
                parameter.data.copy_(value())

    def _refresh_persistent(self) -> None:
        small = getattr(self._deepspeed.optimizer, "persistent_parameters", [])
        if self.stage == 3 and small:
            small[0].all_gather(small)


def _whole(read: Callable[[str, str, int, int], torch.Tensor], name: str, shape: list[int]) -> torch.Tensor:
    return read(name, "weight", 0, math.prod(shape)).view(shape)
