"""DeepSpeed behind six verbs: accumulate, step, gradients, digests, fragments, restore.

DeepSpeed averages gradients over ranks and divides by the accumulation steps, unless told otherwise. A Corral loss is
already a share of the global batch, sum(nll) / targets of all ranks and micro-batches, so this module tells it
otherwise, and no other module knows: ``accumulate`` passes ``scale_wrt_gas=False`` and, at stage 3, which can only
average, multiplies by the number of ranks.
"""

from __future__ import annotations

# DeepSpeed must be imported before any process group exists: the other order ended in SIGABRT at exit in 6 of 20 runs.
import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed prints a warning per process at import
import deepspeed
from deepspeed.runtime import bf16_optimizer

from conf.errors import ConfigError, InternalError, Unavailable
from conf.schema import OptimConfig, ZeroConfig
from train.engine.digests import Digests
from train.engine.fragments import Extent, Fragment, base_optimizer, fragment_at, owned_places
from train.engine.gate import Accept, Gate, always, not_of_gate
from train.engine.hooks import FragmentHook, apply_hooks, check_extras, check_names, first_extras
from train.engine.in_order import InOrder
from train.engine.parameters import elements, largest_block, parameter_groups
from train.engine.restoring import Read, check_shapes, create_moments, hand_out, read_into
from train.engine.settings import fitted
from train.plan import number
from train.ranks.environment import prepare_environment
from train.ranks.group import GROUP_TIMEOUT, Ranks, in_control_group

WRONG_ZERO2 = (((0, 17, 6), (0, 18, 2)), ((0, 18, 3), (0, 19, 3)))
"""DeepSpeed releases with wrong ZeRO-2 gradients (DeepSpeed issues 7718 and 8224)."""


@dataclass(frozen=True)
class StepOutcome:
    grad_norm: float
    """Global norm before clipping; inf or nan if the gradients were not finite."""
    skipped: bool
    """No weight changed: the gradients were not finite, or the caller refused the update."""


def refuse_wrong_versions(version: str) -> None:
    """Raise Unavailable for DeepSpeed releases known to compute wrong gradients."""
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:3])
    if any(low <= found <= high for low, high in WRONG_ZERO2):
        raise Unavailable(
            f"deepspeed {version} computes wrong ZeRO-2 gradients; use the tested one: pip install deepspeed==0.19.8"
        )


def init_distributed(ranks: Ranks, dumps: Path | None = None) -> Ranks:
    """Create the process groups; return ``ranks`` with their control group. Collective.

    The default group is NCCL on GPUs and gloo on CPUs; a run without torchrun becomes a group of one. The groups that
    DeepSpeed makes later get the timeout of the default group. ``dumps``: see ``prepare_environment``.
    """
    refuse_wrong_versions(deepspeed.__version__)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(not_of_gate)
    # Stage 1 in bf16 prints three lines a step of its start, and resets the peak of the device's memory at each.
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message="`torch.distributed.*is deprecated"
    )  # DeepSpeed's
    if "MASTER_ADDR" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    prepare_environment(ranks, dumps)
    on_cpu = ranks.device.type == "cpu"
    if on_cpu:
        # Without this, DeepSpeed compiles a shared-memory op for about 50 CPU-seconds and fails without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", timeout=GROUP_TIMEOUT, verbose=False)
    # DeepSpeed's backend makes its groups without a timeout, so with torch's defaults: 30 minutes for gloo.
    deepspeed.comm.comm.cdb.new_group = partial(dist.new_group, timeout=GROUP_TIMEOUT)
    return in_control_group(ranks)


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
    """Inside it, ``from_pretrained`` partitions weights as it reads them (stage 3); no effect at other stages."""
    if settings["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep = HfDeepSpeedConfig(dict(settings))  # transformers holds a weak reference: it must stay alive
    try:
        yield
    finally:
        del keep


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
        hooks: Sequence[FragmentHook] = (),
    ) -> None:
        if not parameters:
            raise ConfigError("tuning: no parameter is trainable, so the run would learn nothing; check tuning.targets")
        self.ranks, self.stage, self.clip = ranks, number(zero.stage), optim.clip
        self.parameters = dict(parameters)
        optimizer = torch.optim.AdamW(
            parameter_groups(parameters, optim),
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
            # On the host too, where it is 12 times as fast. CPU runs that offload nothing keep their bits.
            fused=ranks.device.type == "cuda" or zero.offload != "none",
        )
        sized = fitted(settings, trained=elements(parameters.values()), block=largest_block(model))
        self._deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=sized)
        averages = self.stage == 3 or self._deepspeed.gradient_average
        self.divided_by = ranks.world if averages else 1
        """What DeepSpeed divides the ranks' sum of gradients by; ``accumulate`` multiplies by it."""
        self._gate = Gate(self._deepspeed.optimizer)
        self._bucket: int = sized["zero_optimization"]["reduce_bucket_size"]
        self._in_order: InOrder | None = None
        self.optimizer_steps = 0
        self.hooks = tuple(hooks)
        self._extras: dict[str, dict[str, torch.Tensor]] = {}
        self._hooked = 0
        if hooks:
            self._install_hooks()

    def sum_in_order(self) -> None:
        """From now on, add up gradients in the order of the micro-batches (train/engine/in_order.py). Collective.

        Stages 2 and 3 only, without offloading. Ranks must take micro-batches in turn.
        """
        self._in_order = InOrder(self._deepspeed.optimizer, self.parameters, self.ranks, self._bucket)
        self._deepspeed.optimizer.clip_grad = 0.0
        self.divided_by = 1

    def _install_hooks(self) -> None:
        """Make the extras, and have torch call the hooks after every update."""
        check_names(self.hooks)
        self._extras = {fragment.name: first_extras(self.hooks, fragment) for fragment in self._fragments("held")}
        # torch calls it inside the base optimizer's step, so before DeepSpeed rounds and gathers the master weights.
        base_optimizer(self._deepspeed.optimizer).register_step_post_hook(self._after_update)

    def _after_update(self, base: torch.optim.Optimizer, *_: object) -> None:
        """Apply the hooks to what ``base`` has just updated: under ZeRO one of several flat tensors."""
        updated = {id(flat) for group in base.param_groups for flat in group["params"]}
        lr = float(base.param_groups[0]["lr"])
        self._hooked += apply_hooks(self.hooks, self._fragments("held", updated), lr)

    @property
    def extras(self) -> list[str]:
        """Names of the further fp32 tensors that hooks keep beside every weight and that checkpoints hold."""
        return sorted(name for hook in self.hooks for name in hook.extras)

    @property
    def module(self) -> torch.nn.Module:
        """The model to call; DeepSpeed's hooks are on it."""
        return self._deepspeed  # type: ignore[no-any-return]

    def accumulate(self, share: torch.Tensor, *, last: bool) -> None:
        """Run backward for one micro-batch.

        ``share``: the micro-batch's part of the global loss, a scalar. ``last``: it is the last one of the step.
        """
        engine = self._deepspeed
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(share * self.divided_by, scale_wrt_gas=False)
        if not last:
            engine.step()  # between boundaries: counts the micro-step, changes nothing

    def digests(self, share: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run backward as ``accumulate`` does; keep of every gradient that this rank computed one int64 of its bits."""
        digests = Digests(self.parameters)
        with digests.instead_of(self._deepspeed.optimizer):
            self.accumulate(share, last=False)
        return digests.found

    def step(self, lr: float, accept: Accept = always) -> StepOutcome:
        """Clip and update with learning rate ``lr``.

        Gradients that are not finite, or whose finite global norm ``accept`` refuses, change nothing on any rank.
        """
        for group in base_optimizer(self._deepspeed.optimizer).param_groups:
            group["lr"] = lr
        self._hooked = 0
        outcome = self._stage0_step(accept) if self.stage == 0 else self._sharded_step(accept)
        self.optimizer_steps += not outcome.skipped
        if self.hooks and self._hooked != (0 if outcome.skipped else len(self._extras)):
            raise InternalError(
                f"DeepSpeed's step (stage {self.stage}, skipped: {outcome.skipped}) applied the fragment hooks to "
                f"{self._hooked} of the {len(self._extras)} fragments of rank {self.ranks.rank}; the weights are not "
                "those of the hooks. Use the tested deepspeed==0.19.8"
            )
        return outcome

    def _stage0_step(self, accept: Accept) -> StepOutcome:
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)) or not accept(float(norm)):
            for parameter in self.parameters.values():
                parameter.grad = None
            return StepOutcome(float(norm), skipped=True)
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.clip, norm)
        self._deepspeed.step()
        return StepOutcome(float(norm), skipped=False)

    def _sharded_step(self, accept: Accept) -> StepOutcome:
        if self._in_order is None:
            return self._gated_step(accept)
        norm = self._in_order.clip(self.clip)
        self._in_order.hand_over()
        outcome = self._gated_step(lambda _: accept(norm), known=norm)
        self._in_order.clear()
        return replace(outcome, grad_norm=norm)  # DeepSpeed's has fewer digits

    def _gated_step(self, accept: Accept, known: float | None = None) -> StepOutcome:
        gate = self._gate
        gate.begin(accept, known)
        self._deepspeed.step()
        norm, applied = float(self._deepspeed.get_global_grad_norm()), self._deepspeed.was_step_applied()
        if not applied:
            gate.clear()
        elif gate.refused is not None or not gate.asked:
            raise InternalError(
                f"DeepSpeed's step (stage {self.stage}) made an update that "
                f"{'was refused' if gate.asked else 'nobody was asked for'}; use the tested deepspeed==0.19.8"
            )
        return StepOutcome(norm if gate.refused is None else gate.refused, skipped=not applied)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Full fp32 gradients on the CPU by name, between the last ``accumulate`` and ``step``.

        For verify and tests only: every rank gets every gradient.
        """
        if self._in_order is not None:
            return self._in_order.gradients()
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
        """The fragments that this rank writes to a checkpoint. Not collective."""
        return list(self._fragments("share"))

    def _fragments(self, extent: Extent, flats: Container[int] | None = None) -> Iterator[Fragment]:
        """This rank's fragments; with ``flats``, only those that lie in flat tensors of these ids."""
        optimizer = self._deepspeed.optimizer
        for name, place in owned_places(self.parameters, optimizer, self.ranks, extent):
            if flats is None or id(place.flat) in flats:
                yield fragment_at(name, place, optimizer, self._extras.get(name, {}))

    def restore(
        self,
        read: Read,
        shapes: Mapping[str, list[int]],
        steps: int,
        extras: Sequence[str] = (),
    ) -> None:
        """Continue from stored state after ``steps`` updates.

        ``read(name, kind, start, numel)`` returns a 1-D fp32 range of the stored parameter; kind is ``weight``, a
        moment or one of the stored ``extras``. Every rank reads its own share alone, so all ranks together read each
        element once. Raises ConfigError (78) if the extras are not those of this engine's hooks, StorageError (74) if
        the parameters are others; the CorralError that ``read`` raises on any rank is raised on all, and then another
        checkpoint may be restored.
        """
        check_extras(self.hooks, extras)
        check_shapes(self.parameters, shapes)
        create_moments(self._deepspeed.optimizer, steps)
        self.ranks.together(lambda: read_into(self._fragments("share"), read))
        hand_out(self._deepspeed.optimizer, self._fragments("held"), self.ranks)
        self.optimizer_steps = steps
