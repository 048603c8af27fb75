"""Start-up proof of ``compute.deterministic``: on this machine the model gives the same bits twice, or the run ends."""

from __future__ import annotations

import itertools
import time

import torch

from conf.errors import InternalError
from train.assembly import Run
from train.attention.repeating import TIMES, repeats
from train.families import family
from train.ranks.group import Ranks


def check_repeats(run: Run) -> None:
    """Forward and backward of the step's first micro-batch twice, and attention's backward pass alone ``TIMES`` times.

    With ``compute.reproducible`` also an update of one tensor, whole and in pieces. Weights, gradients, random states
    and the position in the data stay as they are. Collective: raises InternalError (70) on every rank if one fails.
    """
    if run.stream.peek() is None:
        return  # there is no step to come
    began, problems = time.perf_counter(), list[str]()
    dtype = torch.bfloat16 if run.cfg.model.dtype == "bf16" else torch.float32
    capped = family(run.model_config["model_type"]).soft_cap
    if not repeats(run.attention, dtype=dtype, device=run.ranks.device, capped=capped):
        problems.append(f"{TIMES} backward passes of attention={run.attention.name} differ")
    first, second = _pass(run), _pass(run)
    other = [name for name in first if first[name] != second[name]]
    if other:
        problems.append(
            f"two passes over one micro-batch differ in {len(other)} of {len(first)} tensors, first in {other[0]}"
        )
    if run.cfg.compute.reproducible and not updates_alike(run.ranks.device):
        problems.append("an update depends on where DeepSpeed cuts the weights (compute.reproducible)")
    run.ranks.together(lambda: _refuse(problems, run.ranks))
    seconds = time.perf_counter() - began
    run.tracker.event("repeats", step=run.state.step, gradients=len(first) - 1, seconds=seconds)
    run.tracker.note(f"self-test: two passes gave the same bits of {len(first) - 1} gradients ({seconds:.1f} s)")


def _refuse(problems: list[str], ranks: Ranks) -> None:
    if problems:
        raise InternalError(
            f"compute.deterministic: the self-test failed on rank {ranks.rank} ({ranks.device.type}): "
            f"{'; '.join(problems)}. Use attention=sdpa and compute.kernels=none, or start without debug=deterministic"
        )


def _pass(run: Run) -> dict[str, int]:
    """The bits of the loss and of every gradient of this rank's first micro-batch of the next step, as numbers."""
    step = run.stream.peek()
    assert step is not None
    devices = [run.ranks.device] if run.ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        run.engine.module.train()
        batch = next(iter(run.feed.batches(step)))
        objective = run.objective.sums(run.engine.module, batch).objective
        found = run.engine.digests(objective / (run.objective.denominator(step) or 1.0))
    loss = objective.detach().view(torch.int32).to(torch.int64)
    numbers = torch.stack([loss, *found.values()]).tolist()
    return dict(zip(("the loss", *found), numbers, strict=True))


def updates_alike(device: torch.device) -> bool:
    """Whether torch's AdamW, as the engine has it, computes an element alike wherever in a tensor it stands."""
    size = 10_007
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(size, generator=generator).to(device) for _ in range(2))

    def after(*cuts: int) -> torch.Tensor:
        pieces = list(itertools.pairwise([0, *cuts, size]))
        parameters = [torch.nn.Parameter(start[a:b].clone()) for a, b in pieces]
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda"
        )
        for turn in range(3):
            for parameter, (a, b) in zip(parameters, pieces, strict=True):
                parameter.grad = gradient[a:b] * 10.0 ** (-3 * turn)
            optimizer.step()
        kinds = [
            parameters,
            *([optimizer.state[each][kind] for each in parameters] for kind in ("exp_avg", "exp_avg_sq")),
        ]
        return torch.stack([torch.cat([each.detach() for each in kind]) for kind in kinds])

    return torch.equal(after(), after(1, 7, 50, 5_003, 9_990))
