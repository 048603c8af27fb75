"""Fault points: a plan acts where it says and nowhere else, a wrong one is refused, and without one nothing happens."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from conf.errors import ConfigError
from tests.end_to_end.commands import call, tiny_run
from train.process import faultpoint as module
from train.process.faultpoint import ACTIONS, POINTS, arm, faultpoint
from train.watchdog.processes import born_and_state

ROOT = Path(__file__).parents[3]
FULL = "rank=1,step=37,point=checkpoint.before_rename,nth=2,action=SIGKILL"
EIO = "point=step.recorded,action=EIO"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


def test_every_place_has_one_call_in_the_code_and_every_call_a_place() -> None:
    code = "\n".join(
        path.read_text() for floor in ("train", "data_prep", "conf") for path in (ROOT / floor).rglob("*.py")
    )
    called = re.findall(r'\bfaultpoint\("([^"]+)"', code)
    assert sorted(called) == sorted(POINTS)


def test_without_a_plan_a_place_costs_nothing_and_does_nothing() -> None:
    with mock.patch.object(module, "_reach") as reached:
        assert arm({}) == []
        seconds = min(timeit.repeat(lambda: faultpoint("step.recorded", 3), number=10_000, repeat=5)) / 10_000
    assert not reached.called
    assert seconds < 1e-6


def test_a_plan_is_read_and_repeated() -> None:
    faults = arm({"CORRAL_FAULTS": f"{FULL}; point=end.saved,nth=all,action=ENOSPC;{EIO}", "RANK": "1"})
    assert [str(fault) for fault in faults] == [
        FULL,
        "point=end.saved,nth=all,action=ENOSPC",
        "point=step.recorded,nth=1,action=EIO",
    ]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("step=3", "point is missing"),
        ("point=step.recorded", "action is missing"),
        ("point=step.record,action=EIO", "point=step.record is no place (did you mean step.recorded?)"),
        ("point=step.recorded,action=SIGHUP", f"action=SIGHUP is none of {', '.join(ACTIONS)}"),
        ("point=step.recorded,action=EIO,rank=-1", "rank=-1 is no whole number"),
        ("point=step.recorded,action=EIO,step=all", "step=all is no whole number"),
        ("point=step.recorded,action=EIO,nth=0", "nth=0 is no whole number from 1 on"),
        ("point=step.recorded,action=EIO,nth=²", "nth=² is no whole number from 1 on"),
        ("point=step.recorded,action=EIO,node=1", "'node' is no field of a fault (rank, step, point, nth, action)"),
        ("point=step.recorded,action=EIO,action=EIO", "a field is given twice"),
        (f"{EIO};", "'' is no field of a fault"),
        (" ", "'' is no field of a fault"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_sentence(plan: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arm({"CORRAL_FAULTS": plan})
    assert str(caught.value).startswith(f"CORRAL_FAULTS: {said}")
    assert "\n" not in str(caught.value)


def test_the_command_refuses_it_before_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_FAULTS", "point=nowhere,action=EIO")
    code, output = call("train", *tiny_run(tmp_path, "x"))
    assert code == 78
    assert output.count("\n") == 1
    assert output.startswith("corral: CORRAL_FAULTS: point=nowhere is no place, in 'point=nowhere,action=EIO'; correct")


def acts(plan: str, *places: tuple[str, int | None], rank: int = 0) -> list[int]:
    """Which of ``places`` raise under ``plan``."""
    arm({"CORRAL_FAULTS": plan, "RANK": str(rank)})
    found = []
    for index, (point, step) in enumerate(places):
        try:
            faultpoint(point, step)
        except OSError as error:
            if error.errno == errno.EIO:
                found.append(index)
    return found


def test_rank_step_and_nth_choose_the_moment() -> None:
    walk = [
        (point, step) for step in (3, 4, 5) for point, step in (("step.after_update", step), ("step.recorded", None))
    ]
    assert acts(EIO, *walk) == [1]
    assert acts(f"{EIO},nth=3", *walk) == [5]
    assert acts(f"{EIO},nth=4", *walk) == []
    assert acts(f"{EIO},nth=all", *walk) == [1, 3, 5]
    assert acts(f"{EIO},step=4", *walk) == [3]
    assert acts(f"{EIO},step=4,nth=2", *walk) == []
    assert acts(f"{EIO},step=9", *walk) == []
    assert acts(f"rank=1,{EIO}", *walk) == []
    assert acts(f"rank=1,{EIO}", *walk, rank=1) == [1]
    assert acts(f"{EIO};point=step.after_update,step=5,action=EIO", *walk) == [1, 4]


def process(action: str) -> subprocess.Popen[str]:
    """One that comes to a place at which it is to fail, and says so if it goes on."""
    code = (
        "import os; from train.process.faultpoint import arm, faultpoint; arm(os.environ)\n"
        "faultpoint('step.recorded', 7); print('went on', flush=True)"
    )
    plan = {"CORRAL_FAULTS": f"point=step.recorded,action={action}", "RANK": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **plan}, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        ("SIGKILL", -9, ""),
        ("SIGTERM", -15, ""),
        ("ENOSPC", 1, "OSError: [Errno 28] No space left on device (planted at step.recorded)"),
        ("raise", 1, "RuntimeError: planted by CORRAL_FAULTS at step.recorded"),
    ],
)
def test_actions(action: str, code: int, said: str) -> None:
    child = process(action)
    out, errors = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, "")
    assert said in errors
    first, acted, *_ = errors.splitlines()
    assert first == "corral: this run will fail on purpose, because CORRAL_FAULTS says so"
    found = re.fullmatch(r"corral: CORRAL_FAULTS acts \(rank 0, after step 7, at [\d.]+\): (.*)", acted)
    assert found
    assert str(arm({"CORRAL_FAULTS": found[1]})[0]) == found[1] == f"point=step.recorded,nth=1,action={action}"


def test_a_stopped_process_stands_and_can_go_on() -> None:
    child = process("SIGSTOP")
    deadline = time.monotonic() + 60
    while born_and_state(child.pid)[1] != "T":
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "went on\n")
