"""``python -m tests.end_to_end.planted_guard PLAN ARGUMENTS...``: train, where steps go wrong as PLAN (JSON) says.

``nan``: steps whose gradients become NaN on the last rank. ``grad``: step -> factor of the gradients. ``lr``: [step,
rate], from that step on. ``kill``: a step before which every rank kills itself, or "rollback": inside the first one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from typing import Any

import torch

from conf.compose import config_from_argv
from data_prep.stream.stream import GlobalStep, Stream
from train import main
from train.engine import Engine
from train.ranks.group import end_process


def run(plan: dict[str, Any], arguments: list[str]) -> None:
    now = 0
    advance, accumulate, restore, rate = Stream.__next__, Engine.accumulate, Engine.restore, main.lr_at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def next_step(self: Stream) -> GlobalStep:
        nonlocal now
        step = advance(self)
        now = step.index + 1
        if plan.get("kill") == now:
            die()
        return step

    def worse(self: Engine, share: torch.Tensor, *, last: bool) -> None:
        factor = plan.get("grad", {}).get(str(now), 1.0)
        if now in plan.get("nan", []) and self.ranks.rank == self.ranks.world - 1:
            factor = math.nan
        accumulate(self, share if factor == 1.0 else share * factor, last=last)

    def restored(self: Engine, *given: Any) -> None:
        if plan.get("kill") == "rollback" and now:
            die()
        restore(self, *given)

    def lr_at(step: int, **settings: Any) -> float:
        first, value = plan.get("lr", [math.inf, 0.0])
        return float(value) if step + 1 >= first else rate(step, **settings)

    Stream.__next__, Engine.accumulate = next_step, worse  # type: ignore[method-assign]
    Engine.restore, main.lr_at = restored, lr_at  # type: ignore[method-assign,assignment]
    cfg, _ = config_from_argv(arguments, command="train")
    end_process(main.start(cfg, arguments))


if __name__ == "__main__":
    run(json.loads(sys.argv[1]), sys.argv[2:])
