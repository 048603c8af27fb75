"""A job's time limit, and how long before it SLURM asks the run to stop: time for the step under way and for a save."""

from __future__ import annotations

import math
import re

from conf.errors import ConfigError
from conf.schema import RunConfig
from launch.restarts import FEW_STEPS
from train.plan import Plan

SCRIPT_LEAD = 300
"""The lead of slurm/train.sh's own #SBATCH line, in seconds; also where the plan knows no speed of a step."""
LEAST = 60
"""Seconds of any lead beside step and save: the ranks leave, torchrun ends, and SLURM's clock is coarse."""
START = 60
"""Seconds of an attempt before its first step: processes start and a model is loaded."""
LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def limit_seconds(text: str) -> float:
    """SLURM's time limit in seconds; infinity without one. sbatch's manual, --time, has the six forms.

    Raises ConfigError for another form.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    found = LIMIT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"cluster.time={text}: not a time limit of SLURM; write days-hours:minutes:seconds, hours:minutes:seconds, "
            "or minutes"
        )
    first, second, third = (int(found[name] or 0) for name in ("first", "second", "third"))
    if found["days"] is not None:
        return ((int(found["days"]) * 24 + first) * 60 + second) * 60 + third
    return (first * 60 + second) * 60 + third if found["third"] is not None else first * 60 + second


def step_seconds(found: Plan) -> float | None:
    """A step at the slow end of the plan's speed; None if it knows none."""
    return None if isinstance(found.speed, str) else found.tokens_per_step / (found.speed.low * found.world)


def lead_seconds(found: Plan) -> int:
    """How long before the limit the run is to be asked to stop: twice a step and a save by the plan, and LEAST."""
    step = step_seconds(found)
    lead = LEAST + 2 * ((step or 0.0) + found.stall_s)
    lead = lead if step is not None else max(lead, SCRIPT_LEAD)
    return 30 * math.ceil(lead / 30)


def lead_of(cfg: RunConfig, found: Plan | None) -> int:
    """``cluster.signal_seconds``, or what the plan says, or what the script has if the run has no plan."""
    return cfg.cluster.signal_seconds or (lead_seconds(found) if found else SCRIPT_LEAD)


def judge(found: Plan | None, limit: float, lead: int) -> str:
    """A warning for a lead that is too short by the plan, else nothing. ``limit``, ``lead``: seconds.

    Raises ConfigError for a limit in which an attempt trains fewer than FEW_STEPS steps: it would be requeued for ever.
    """
    step = (found and step_seconds(found)) or 0.0
    least = math.ceil(lead + START + FEW_STEPS * step)
    if limit < least:
        raise ConfigError(
            f"the time limit is {limit:.0f} s, and the run is asked to stop {lead} s before it: an attempt would train "
            f"fewer than {FEW_STEPS} steps, again and again; give {math.ceil(least / 60)} minutes or more "
            "(cluster.time, sbatch --time), or a shorter lead (cluster.signal_seconds=N, sbatch --signal=B:USR1@N)"
        )
    needed = lead_seconds(found) if found and not isinstance(found.speed, str) else 0
    if lead >= needed:
        return ""
    return (
        f"corral: warning: the run is asked to stop {lead} s before its time limit, and a step with a save may take "
        f"{needed - LEAST} s by the plan; set cluster.signal_seconds={needed}, and --signal=B:USR1@{needed} with sbatch"
    )


def sentence(cfg: RunConfig, found: Plan) -> str:
    """What the plan says of ``cluster.time``; nothing without one."""
    if cfg.cluster.time is None:
        return ""
    limit, lead = limit_seconds(cfg.cluster.time), lead_of(cfg, found)
    step = step_seconds(found)
    steps = f"; about {max(0.0, limit - lead - START) / step:,.0f} steps each" if step and limit < math.inf else ""
    return f"attempts of {cfg.cluster.time}, asked to stop {lead} s before the end{steps}"
