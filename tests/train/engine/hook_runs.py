"""Runs with two fragment hooks, a pull to the start and a running average, and the same in plain torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from conf.errors import ConfigError, InternalError
from tests.train.engine.test_engine import GLOBAL, OPTIM, Toy, feed, named, nll, targets
from tests.train.engine.test_engine import make_engine as engine_of
from train import checkpoint
from train.checkpoint.layout import Stored
from train.engine import Engine, Fragment, FragmentHook
from train.ranks.group import Ranks

STRENGTH, DECAY, STEPS, HALF = 0.8, 0.7, 3, 1
State = dict[str, dict[str, torch.Tensor]]
"""Kind (weight or extra) -> parameter -> whole tensor."""


def pull(fragment: Fragment, lr: float) -> None:
    """w <- w - lr * strength * (w - start): decoupled weight decay towards the start (L2-SP, Li et al. 2018)."""
    fragment.weight.sub_(fragment.weight - fragment.extras["start"], alpha=lr * STRENGTH)


def average(fragment: Fragment, lr: float) -> None:
    fragment.extras["average"].mul_(DECAY).add_(fragment.weight, alpha=1.0 - DECAY)


HOOKS = (
    FragmentHook("l2_sp", pull, {"start": lambda fragment: fragment.weight}),
    FragmentHook("average", average, {"average": lambda fragment: torch.zeros(fragment.numel)}),
)


def make_model(method: str) -> nn.Module:
    """Tied embeddings in both."""
    if method == "full":
        return Toy()
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["inner", "embed"], init_lora_weights=False)
    return get_peft_model(Toy(), lora)  # type: ignore[no-any-return, arg-type]


@dataclass(frozen=True)
class Case:
    method: str
    stage: int
    dtype: str = "fp32"
    offload: str = "none"
    sub_group: int = 0
    """Stage 3: elements that DeepSpeed updates at once; 0: all."""

    @property
    def label(self) -> str:
        return f"{self.method}-{self.stage}-{self.dtype}-{self.offload}-{self.sub_group}"


CASES = [Case(method, stage) for method in ("full", "lora") for stage in (0, 1, 2, 3)]
CASES += [Case("full", 2, offload="optimizer"), Case("full", 3, offload="optimizer"), Case("full", 3, sub_group=50)]
CROSSED = [("full", 3, 2), ("full", 2, 0), ("full", 0, 1), ("lora", 1, 3), ("lora", 3, 0)]
"""Method, stage of the stored run, stage of the run that continues it on the other number of ranks."""
BF16 = [Case("full", stage, "bf16") for stage in (2, 3)] + [Case("full", 3, "bf16", "optimizer")]
ONE_UPDATE = [*(Case("full", stage) for stage in (0, 1, 2, 3)), *BF16, Case("full", 1, "bf16")]


def make_engine(ranks: Ranks, case: Case, hooks: Sequence[FragmentHook]) -> Engine:
    passed_on = {"sub_group_size": case.sub_group} if case.sub_group else {}
    model = make_model(case.method)
    zero: dict[str, Any] = {"offload": case.offload, "deepspeed": passed_on}
    return engine_of(ranks, case.stage, 1, case.dtype, model=model, hooks=hooks, **zero)


def lr_of(step: int) -> float:
    return OPTIM.lr * (1.0 - 0.2 * step)


def reference(method: str) -> State:
    """Plain torch in one process: AdamW, then the two rules on whole parameters."""
    model = make_model(method)
    trained = named(model)
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    averages = {name: torch.zeros_like(parameter) for name, parameter in start.items()}
    matrices, vectors = ([p for p in trained.values() if (p.dim() >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": OPTIM.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(OPTIM.betas[0], OPTIM.betas[1]), eps=OPTIM.eps)
    for step in range(STEPS):
        optimizer.zero_grad()
        (sum(nll(model, step, index) for index in range(GLOBAL)) / targets(step)).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(trained.values(), OPTIM.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(parameter - lr_of(step) * STRENGTH * (parameter - start[name]))
                averages[name] = DECAY * averages[name] + (1.0 - DECAY) * parameter
    return {"weight": {n: p.detach().clone() for n, p in trained.items()}, "start": start, "average": averages}


def save(engine: Engine, ranks: Ranks, run_dir: Path, step: int) -> Path:
    published = checkpoint.save(run_dir, engine, ranks=ranks, attempt=0, step=step, extra={}, keep=9)
    assert not isinstance(published, str), published
    return published.path


def stored_at(path: Path) -> Stored:
    return Stored(path, json.loads((path / "MANIFEST.json").read_text()))


def read_state(path: Path) -> State:
    with stored_at(path) as stored:
        return {
            kind: {
                name: stored.read(name, kind, 0, math.prod(shape)).view(shape) for name, shape in stored.shapes.items()
            }
            for kind in ("weight", *stored.extras)
        }


def restore(engine: Engine, path: Path) -> None:
    with stored_at(path) as stored:
        engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"], stored.extras)


def train_steps(engine: Engine, ranks: Ranks, first: int, last: int) -> None:
    for step in range(first, last):
        feed(engine, ranks, step, 1)
        assert not engine.step(lr_of(step)).skipped


def holds_rounded(engine: Engine, path: Path) -> bool:
    """Whether the weights that the model computes with are the stored fp32 ones, rounded to their dtype."""
    master, held = read_state(path)["weight"], engine.parameters
    with engine.whole(list(held.values())):
        return all(torch.equal(held[name], master[name].to(held[name].dtype)) for name in held)


def uninterrupted(ranks: Ranks, cases: Sequence[Case], folder: str) -> dict[str, bool]:
    """All steps of every case, stored in the middle and at the end; whether the model holds the rounded master."""
    rounded = {}
    for case in cases:
        engine = make_engine(ranks, case, HOOKS)
        run_dir = Path(folder, f"{case.label}-{ranks.world}")
        train_steps(engine, ranks, 0, HALF)
        save(engine, ranks, run_dir, HALF)
        train_steps(engine, ranks, HALF, STEPS)
        rounded[case.label] = holds_rounded(engine, save(engine, ranks, run_dir, STEPS))
    return rounded


def resumed(ranks: Ranks, case: Case, source: Path, run_dir: Path) -> None:
    """The steps after the middle of ``case`` from the checkpoint ``source``, and what they end in."""
    engine = make_engine(ranks, case, HOOKS)
    restore(engine, source)
    train_steps(engine, ranks, HALF, STEPS)
    save(engine, ranks, run_dir, STEPS)


def one_update(ranks: Ranks, case: Case, folder: str) -> bool:
    """Whether the hook changed AdamW's fp32 master weights by its rule bit for bit, and the model's with them."""
    found = []
    for hooks in ((), HOOKS):
        engine = make_engine(ranks, case, hooks)
        before = [fragment.weight.clone() for fragment in engine.fragments()]
        train_steps(engine, ranks, 0, 1)
        found.append([fragment.weight.clone() for fragment in engine.fragments()])
    wanted = [
        weight.sub(weight - start, alpha=lr_of(0) * STRENGTH) for weight, start in zip(found[0], before, strict=True)
    ]
    moved = any(not torch.equal(weight, plain) for weight, plain in zip(wanted, found[0], strict=True))
    rounded = holds_rounded(engine, save(engine, ranks, Path(folder, f"{case.label}-one"), 1))
    return rounded and moved and all(torch.equal(weight, here) for weight, here in zip(wanted, found[1], strict=True))


def skipped_changes_nothing(ranks: Ranks, case: Case) -> bool:
    engine = make_engine(ranks, case, HOOKS)
    train_steps(engine, ranks, 0, 1)
    before = [{kind: tensor.clone() for kind, tensor in each.tensors.items()} for each in engine.fragments()]
    for turn in range(GLOBAL // ranks.world):
        engine.accumulate(nll(engine.module, 0, 0) * math.nan, last=turn == GLOBAL // ranks.world - 1)
    assert engine.step(lr_of(1)).skipped
    return all(
        torch.equal(tensor, old[kind])
        for old, fragment in zip(before, engine.fragments(), strict=True)
        for kind, tensor in fragment.tensors.items()
    )


def raises(fragment: Fragment, lr: float) -> None:
    raise ValueError("no such weight")


def resizes(fragment: Fragment, lr: float) -> None:
    fragment.weight.data = fragment.weight.data[:-1]


def replaces(fragment: Fragment, lr: float) -> None:
    fragment.extras["start"] = fragment.weight.clone()


def adds(fragment: Fragment, lr: float) -> None:
    fragment.extras["other"] = fragment.weight.clone()


def nothing(fragment: Fragment, lr: float) -> None: ...


START: Mapping[str, Callable[[Fragment], torch.Tensor]] = HOOKS[0].extras
WRONG = {
    "raises": FragmentHook("raises", raises),
    "resizes": FragmentHook("resizes", resizes),
    "replaces": FragmentHook("replaces", replaces, START),
    "adds": FragmentHook("adds", adds),
    "first": FragmentHook("first", nothing, {"start": lambda fragment: torch.zeros(fragment.numel + 1)}),
    "named": FragmentHook("named", nothing, {"exp_avg": lambda fragment: fragment.weight}),
}


def said(attempt: Callable[[], object], kind: type[Exception]) -> str:
    try:
        attempt()
    except kind as error:
        return str(error)
    return ""


def mistakes(ranks: Ranks, case: Case) -> dict[str, str]:
    def attempt(hook: FragmentHook) -> None:
        train_steps(make_engine(ranks, case, [hook]), ranks, 0, 1)

    return {name: said(lambda hook=hook: attempt(hook), InternalError) for name, hook in WRONG.items()}  # type: ignore[misc]


def alone(ranks: Ranks, folder: str) -> dict[str, Any]:
    return {"rounded": uninterrupted(ranks, CASES, folder)}


def together(ranks: Ranks, folder: str) -> dict[str, Any]:
    rounded = uninterrupted(ranks, CASES + BF16, folder)
    for case in CASES + BF16:
        resumed(ranks, case, half(folder, case, 2), Path(folder, f"{case.label}-again"))
    cross(ranks, folder, 1)
    stages = [Case("full", stage) for stage in (0, 1, 2, 3)]
    plain = make_engine(ranks, stages[2], ())
    train_steps(plain, ranks, 0, HALF)
    without = save(plain, ranks, Path(folder, "plain"), HALF)
    with_extras = half(folder, stages[2], 2)
    return {
        "rounded": rounded,
        "one update": {case.label: one_update(ranks, case, folder) for case in ONE_UPDATE},
        "skipped": {case.label: skipped_changes_nothing(ranks, case) for case in stages},
        "mistakes": {case.stage: mistakes(ranks, case) for case in (stages[0], stages[3])},
        "not stored": said(lambda: restore(make_engine(ranks, stages[0], HOOKS), without), ConfigError),
        "not wanted": said(lambda: restore(make_engine(ranks, stages[3], ()), with_extras), ConfigError),
    }


def cross(ranks: Ranks, folder: str, world: int) -> None:
    """Continue the runs of ``world`` ranks on these ranks and another stage."""
    for method, before, after in CROSSED:
        source, run_dir = half(folder, Case(method, before), world), crossed(folder, method, world, after)
        resumed(ranks, Case(method, after), source, run_dir)


def half(folder: str, case: Case, world: int) -> Path:
    return Path(folder, f"{case.label}-{world}", "checkpoints", f"step-{HALF:08d}")


def end(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{STEPS:08d}"


def crossed(folder: str, method: str, world: int, stage: int) -> Path:
    """The run that continues one of ``world`` ranks on the other number of ranks."""
    return Path(folder, f"{method}-of-{world}-to-stage-{stage}")
