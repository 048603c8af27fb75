"""What the soak draws is a plan, and what it judges by sees each kind of fault."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.faults.judge import Result, newest_step, of_end, of_kill, of_term
from tests.faults.plans import FULL_DISK, SHARES, STEPS, drawn
from tests.faults.warm import Ended
from train.process.faultpoint import POINTS, arm

WHOLE = Result("f" * 64, b'{"step": 1}\n', [4.0, 3.5])


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


@pytest.mark.parametrize("action", ["SIGKILL", "SIGTERM"])
def test_every_draw_is_a_plan_and_every_place_is_drawn(action: str) -> None:
    random, kinds, places = Random(0), Counter[str](), set[str]()
    for index in range(3000):
        attack = drawn(random, action, start=index % (STEPS + 1), seconds=3.0)
        faults = arm({"CORRAL_FAULTS": attack.faults})
        sent = [number for _, _, number in attack.signals]
        assert [fault.action for fault in faults if fault.action != "ENOSPC"] + [
            signal.Signals(number).name for number in sent
        ] == [action]
        kinds[attack.kind] += 1
        places.add(attack.place)
    assert places == {*POINTS, "time"}
    if action == "SIGKILL":
        assert all(abs(kinds[kind] / 3000 - share) < 0.05 for kind, share in SHARES.items())
    assert str(drawn(Random(7), action, 4, 3.0)) == str(drawn(Random(7), action, 4, 3.0))


def ended(*codes: int, after: float = 1.0, hung: bool = False) -> Ended:
    return Ended([*codes], [2.0 + after] * len(codes), hung, 0.0, [], "its output")


@pytest.mark.parametrize(
    ("end", "wrong"),
    [
        (ended(-9, 76), []),
        (ended(0, -9), []),
        (ended(-9, 70), ["codes [-9, 70], hung: False: its output"]),
        (ended(-9, -9, hung=True), ["codes [-9, -9], hung: True: its output"]),
        (ended(-9, 76, after=11.5), ["the last rank left 11.5 s after the kill"]),
    ],
)
def test_a_kill(end: Ended, wrong: list[str]) -> None:
    assert [*of_kill(end, at=2.0)] == wrong


def stopped(run_dir: Path, code: int, reason: str, *steps: int) -> Path:
    for step in steps:
        (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (run_dir / "exit.json").write_text(json.dumps({"code": code, "reason": reason}))
    return run_dir


@pytest.mark.parametrize(
    ("code", "reason", "steps", "ending", "wrong"),
    [
        (75, "stopped with a checkpoint of step 6", (4, 6), "75, with the checkpoint that it names", ""),
        (75, "stopped with a checkpoint of step 6", (4,), "75, with the checkpoint that it names", "no step 6"),
        (75, "at step 9; the newest on disk is that of step 4", (4,), "75, with the checkpoint that it names", ""),
        (75, "stopped before its first step", (), "75, before the first step", ""),
        (75, "stopped before its first step", (4,), "anything else", "the newest checkpoint is 4"),
        (75, "stopped at step 3", (), "anything else", "the newest checkpoint is 0"),
        (74, "and nothing is saved", (), "74, nothing is saved", ""),
        (74, "and nothing is saved", (4,), "anything else", "the newest checkpoint is 4"),
        (70, "a defect", (), "anything else", "'code': 70"),
        (0, "done", (16,), "0, it was done", ""),
    ],
)
def test_a_request_to_stop(
    tmp_path: Path, code: int, reason: str, steps: tuple[int, ...], ending: str, wrong: str
) -> None:
    def verified(path: Path, step: int | None) -> tuple[int, str]:
        return (0, "") if (path / "checkpoints" / f"step-{step:08d}").is_dir() else (74, f"no step {step}")

    run_dir = stopped(tmp_path, code, reason, *steps)
    found, faults = of_term(run_dir, ended(code, code), 2.0, verified)
    assert found == ending
    assert wrong in "".join(faults)
    assert bool(faults) == bool(wrong)
    assert of_term(run_dir, ended(code, 1), 2.0, verified)[1]
    assert "30.0 s after the signal" in of_term(run_dir, ended(code, code, after=30.0), 2.0, verified)[1][0]
    assert newest_step(run_dir) == max(steps, default=0)


@pytest.mark.parametrize(
    ("found", "names", "wrong"),
    [
        ({}, ("LATEST", "step-00000016"), []),
        ({"fingerprint": "0" * 64}, ("LATEST", "step-00000016"), ["unequal fingerprint: 00"]),
        ({"ledger": b""}, ("LATEST", "step-00000016"), ["ledger difference"]),
        ({"losses": [4.0]}, ("LATEST", "step-00000016"), ["losses [4.0] instead of [4.0, 3.5]"]),
        ({}, (".tmp-step-00000016-3", "LATEST", "step-00000016"), ["checkpoints/ holds ['.tmp"]),
        ({}, ("LATEST", "step-00000014"), ["checkpoints/ holds ['LATEST', 'step-00000014']"]),
    ],
)
def test_an_end(tmp_path: Path, found: dict[str, Any], names: tuple[str, ...], wrong: list[str]) -> None:
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    faults = [*of_end(tmp_path, ended(0, 0), WHOLE, lambda: Result(**{**vars(WHOLE), **found}))]
    assert len(faults) == len(wrong)
    assert all(fault.startswith(each) for fault, each in zip(faults, wrong, strict=True))
    assert next(of_end(tmp_path, ended(0, 74), WHOLE, lambda: WHOLE)).startswith("failed resume: codes [0, 74]")


def test_the_full_disk_is_a_plan() -> None:
    (fault,) = arm({"CORRAL_FAULTS": FULL_DISK})
    assert str(fault) == FULL_DISK
