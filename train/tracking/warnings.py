"""What a run that teaches little says of itself, before its first step and after an evaluation: one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from conf.schema import FullTuning, RunConfig, StopConfig
from train.plan import number

FEW_STEPS = 10
"""Below so many updates, a schedule has no room to warm up and decay."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run once its parts are built."""

    total_steps: int
    goes_on: bool
    """The data would give steps beyond ``schedule.max_steps``."""
    pass_steps: int
    """About so many steps are a pass over the corpus."""
    held_out: Mapping[str, int]
    """Held-out rows of every source that is evaluated."""
    readers: int
    """Ranks, or groups of ranks, with rows of their own."""


def warnings_of(cfg: RunConfig, facts: Facts) -> Iterator[str]:
    """Every warning of a run that is about to start."""
    yield from _steps(cfg, facts)
    yield from _limit(cfg, facts)
    yield from _rate(cfg)
    if _evaluates(cfg) and not any(facts.held_out.values()):
        yield (
            "no row is held out, so evaluation measures nothing; set data.sources.NAME.validation_fraction=0.05 and "
            "prepare again, or switch it off with evaluation=skip"
        )
    rows = number(cfg.batch.global_size)
    if facts.readers > rows:
        yield (
            f"batch.global_size={rows} gives {facts.readers - rows} of {facts.readers} ranks no row to work on; raise "
            "it, or take fewer processes"
        )


def notes_of(cfg: RunConfig, facts: Facts) -> Iterator[str]:
    """What is worth a line and no mistake: a limit that ends the run after the corpus was read once or more."""
    most = cfg.schedule.max_steps
    if facts.goes_on and most >= facts.pass_steps:
        yield f"schedule.max_steps={most} ends the run before the data ends ({_stop(cfg.data.stop)})"


def cut_answers(samples: Sequence[Mapping[str, Any]], max_new_tokens: int) -> Iterator[str]:
    """A warning about answered ``samples`` (``Answer.to_dict``) that ended without an end of sequence."""
    cut = sum(bool(sample["cut"]) for sample in samples)
    if cut:
        yield (
            f"{cut} of {len(samples)} answers were cut at evaluation.max_new_tokens={max_new_tokens}, so their scores "
            "are those of unfinished answers; raise it, unless the model has not learnt to stop"
        )


def _evaluates(cfg: RunConfig) -> bool:
    evaluation = cfg.evaluation
    return evaluation.at_start or evaluation.at_end or evaluation.every_steps > 0


def _steps(cfg: RunConfig, facts: Facts) -> Iterator[str]:
    if facts.total_steps >= FEW_STEPS:
        return
    steps = "1 step" if facts.total_steps == 1 else f"{facts.total_steps} steps"
    rows = number(cfg.batch.global_size)
    smaller = f"lower batch.global_size={rows} or data.seq_len" if rows > 1 else "lower data.seq_len"
    ways = f"{_longer(cfg.data.stop)}, or {smaller}"
    if facts.goes_on:
        ways = f"raise schedule.max_steps={cfg.schedule.max_steps}"
    yield f"the run has {steps}, in which a model learns little; {ways}"


def _limit(cfg: RunConfig, facts: Facts) -> Iterator[str]:
    most, stop = cfg.schedule.max_steps, cfg.data.stop
    if facts.goes_on and most < facts.pass_steps:
        yield (
            f"schedule.max_steps={most} ends the run before the data ends ({_stop(stop)}), and before a pass over the "
            f"corpus, which takes about {facts.pass_steps} steps: the other samples are not learnt"
        )
    elif most > facts.total_steps:
        yield (
            f"the data ends ({_stop(stop)}) after {facts.total_steps} steps, before schedule.max_steps={most}; "
            f"{_longer(stop)} for more steps"
        )


def _rate(cfg: RunConfig) -> Iterator[str]:
    lr, own, full = cfg.optim.lr, cfg.tuning.FACTS.lr, FullTuning.FACTS.lr
    if lr <= full < own:
        yield (
            f"optim.lr={lr:g} is a rate for full tuning, and tuning={cfg.tuning.method} trains few new weights, which "
            f"hardly move at it; its own is {own:g} (optim.lr=auto)"
        )


def _stop(stop: StopConfig) -> str:
    """The field that is set, as on a command line."""
    given = {each.name: getattr(stop, each.name) for each in fields(stop)}
    return ", ".join(f"data.stop.{name}={shown(value)}" for name, value in given.items() if value is not None)


def _longer(stop: StopConfig) -> str:
    given = next((each.name for each in fields(stop) if getattr(stop, each.name) is not None), "epochs")
    return f"raise data.stop.{given}" if given in ("epochs", "tokens", "examples") else "set data.stop.epochs"


def shown(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
