"""Time limits in SLURM's words, and how long before them a run is asked to stop."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ConfigError
from conf.schema import RunConfig
from launch.plan.limits import FEW_STEPS, LEAST, SCRIPT_LEAD, START, judge, lead_of, lead_seconds, limit_seconds
from launch.plan.table import plan_if_known, planned, table
from launch.restarts import idle_restarts
from launch.slurm import batch_job
from launch.torchrun import ROOT
from train.plan import Plan
from train.plan.speed import Speed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("12:00:00", 43200),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-02:30:15", 95415),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
    ],
)
def test_limits_are_read_as_sbatchs_manual_says(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_what_scontrol_prints_is_read_back(days: int, hours: int, minutes: int, seconds: int) -> None:
    printed = f"{days}-{hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours:02}:{minutes:02}:{seconds:02}"
    assert limit_seconds(printed) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "12h", "-5", "1-"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.time"):
        limit_seconds(text)


def plan_of(cfg: RunConfig, *, step: float | None, save: float) -> Plan:
    """The demo's plan as if a step took ``step`` seconds at the slow end, and a save ``save``."""
    found = plan_if_known(cfg)
    assert found
    if step is None:
        return replace(found, stall_s=save)
    per_gpu = found.tokens_per_step / (found.world * step)
    return replace(found, stall_s=save, speed=Speed(1.5 * per_gpu, per_gpu, 2 * per_gpu, ()))


def test_the_lead_is_twice_a_step_and_a_save_and_a_minute(cfg: RunConfig) -> None:
    assert lead_seconds(plan_of(cfg, step=20, save=100)) == 300
    assert lead_seconds(plan_of(cfg, step=1, save=1)) == 90, "64 s, in halves of minutes"
    assert lead_seconds(plan_of(cfg, step=None, save=1)) == SCRIPT_LEAD, "how long a step takes is not known"
    assert lead_seconds(plan_of(cfg, step=None, save=600)) == LEAST + 1200
    chosen = replace(cfg, cluster=replace(cfg.cluster, signal_seconds=77))
    assert lead_of(chosen, plan_of(cfg, step=20, save=100)) == 77
    assert lead_of(cfg, None) == SCRIPT_LEAD


def test_a_limit_that_leaves_no_time_for_steps_is_refused(cfg: RunConfig) -> None:
    """Four minutes, and a signal five minutes before their end: one step per attempt, for ever."""
    with pytest.raises(ConfigError, match=r"the time limit is 240 s.*asked to stop 300 s before.*6 minutes or more"):
        judge(None, 240, SCRIPT_LEAD)
    assert judge(None, SCRIPT_LEAD + START, SCRIPT_LEAD) == ""
    slow = plan_of(cfg, step=20, save=1)
    least = 120 + START + FEW_STEPS * 20
    assert judge(slow, least, 120) == ""
    with pytest.raises(ConfigError, match="fewer than 5 steps"):
        judge(slow, least - 1, 120)
    assert judge(slow, math.inf, 120) == ""


def test_a_lead_that_is_shorter_than_the_plans_is_told(cfg: RunConfig) -> None:
    slow = plan_of(cfg, step=200, save=100)
    said = judge(slow, 1e9, SCRIPT_LEAD)
    assert "asked to stop 300 s before" in said
    assert "--signal=B:USR1@660" in said
    assert judge(slow, 1e9, 660) == ""
    assert judge(plan_of(cfg, step=None, save=1), 1e9, 60) == "", "nobody knows better"


def test_the_scripts_own_lead_is_the_one_that_is_reckoned_with() -> None:
    found = re.search(r"#SBATCH --signal=B:USR1@(\d+)", (ROOT / "slurm" / "train.sh").read_text())
    assert found
    assert int(found[1]) == SCRIPT_LEAD


@pytest.mark.parametrize(
    ("variables", "signal_seconds", "lead"), [({}, 0, 300), ({}, 60, 60), ({"CORRAL_SIGNAL_SECONDS": "90"}, 60, 90)]
)
def test_a_job_is_judged_by_the_limit_that_slurm_gives_it(
    cfg: RunConfig, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], signal_seconds: int, lead: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = replace(cfg, cluster=replace(cfg.cluster, signal_seconds=signal_seconds))
    monkeypatch.setattr(batch_job, "job_record", lambda job: {"TimeLimit": f"00:00:{lead - 1}"})
    with pytest.raises(ConfigError, match=f"asked to stop {lead} s"):
        batch_job.judge_job(cfg, "7")
    monkeypatch.setattr(batch_job, "job_record", lambda job: {"TimeLimit": "01:00:00"})
    assert batch_job.judge_job(cfg, "7") == ""
    assert batch_job.judge_job(cfg, "") == "", "no job of SLURM"


def test_the_plan_tells_what_an_attempt_is_worth(cfg: RunConfig, tmp_path: Path) -> None:
    answer = planned(cfg)
    assert "attempts of 12:00:00, asked to stop 300 s before the end" in table(answer)
    fast = replace(answer, found=plan_of(cfg, step=10, save=1))
    assert f"before the end; about {(43200 - 90 - START) / 10:,.0f} steps each" in table(fast)
    local = replace(answer, cfg=replace(answer.cfg, cluster=replace(answer.cfg.cluster, kind="local")))
    assert "attempts of" not in table(local)


@pytest.mark.parametrize(
    ("steps", "idle"),
    [
        ([0, 1, 2, 3], 3),  # one step per attempt, for ever
        ([0, 2, 4, 6, 8], 1),  # two, so that every third attempt counts
        ([0, 5, 10], 0),
        ([7, 7, 7], 2),
        ([10, 3, 4], 2),  # from an older checkpoint, as after damage
    ],
)
def test_attempts_that_together_gain_few_steps_are_no_progress(tmp_path: Path, steps: list[int], idle: int) -> None:
    (tmp_path / "exit").mkdir()
    for attempt, step in enumerate(steps):
        mark = {"code": 75, "step": step, "checkpoint": step}
        (tmp_path / "exit" / f"attempt-{attempt}-end.json").write_text(json.dumps(mark))
    assert idle_restarts(tmp_path, 0, len(steps) - 1) == idle
