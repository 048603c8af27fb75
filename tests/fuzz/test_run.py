"""The fuzzer finds what it looks for, says which case it was, and runs that case again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from conf.errors import BadData, ConfigError, InternalError
from tests.fuzz import judge
from tests.fuzz.run import Fuzz, Tally, chosen, told
from tests.fuzz.target import Case, Target

Read = Callable[[Path], object]


def make(folder: Path) -> None:
    (folder / "file").write_text("whole")


def damage(rng: Random, folder: Path) -> str:
    """Half of the cases are harmless."""
    said = rng.choice(["harmless", "harmful"])
    (folder / "file").write_text(said)
    return said


def raising(error: BaseException) -> Read:
    def read(folder: Path) -> None:
        if (folder / "file").read_text() == "harmful":
            raise error

    return read


def doing(action: Callable[[], object]) -> Read:
    def read(folder: Path) -> None:
        if (folder / "file").read_text() == "harmful":
            action()

    return read


def grow() -> None:
    held = bytearray(os.urandom(1 << 20) * 200)
    del held


def hold() -> None:
    held = bytearray(os.urandom(1 << 20) * 200)
    time.sleep(60)
    del held


def compute() -> None:
    while True:
        pass


@pytest.fixture
def fuzz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fuzz:
    monkeypatch.setattr(judge, "SECONDS", 0.3)
    monkeypatch.setattr(judge, "MEMORY", 100 << 20)
    return Fuzz(tmp_path, 5, tmp_path / "kept")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (raising(KeyError("a")), "KeyError at "),
        (raising(SystemExit(0)), "SystemExit at "),
        (raising(BadData("")), "no sentence at "),
        (raising(ConfigError(["optim.lr: wrong", "two\nlines"])), "no sentence at "),
        (raising(BadData(f"{object()} is wrong")), "no sentence of a user's language"),
        (raising(BadData("x" * 3_000)), "a sentence of N characters"),
        (raising(InternalError("impossible")), "an error of Corral itself (70)"),
        (raising(AssertionError("rows are lost")), "AssertionError at "),
        (doing(lambda: os.write(2, b"thread panicked at x")), "a panic is printed"),
        (doing(lambda: os.write(1, b"\x1b[2J")), "an escape sequence is printed"),
        (doing(lambda: print("Traceback (most recent call last)", file=sys.stderr)), "a traceback is printed"),
        (doing(lambda: time.sleep(60)), "it takes more than"),
        (doing(compute), "it takes more than"),
        (doing(hold), "it takes N MiB of memory"),
        (doing(grow), "it takes N MiB of memory"),
        (doing(lambda: os.kill(os.getpid(), signal.SIGKILL)), "it ends its process by SIGKILL"),
        (doing(lambda: os._exit(0)), "it ends its process with 0"),
    ],
)
def test_each_fault_is_found_and_the_others_go_on(
    fuzz: Fuzz, read: Read, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target("planted", make, damage, read)
    for seconds in (0.5, 2.0, 8.0, 16.0):  # on a machine that has much else to do
        fuzz.attack([target], seconds, 1)
        tally = fuzz.tallies.get("planted", Tally())
        if tally.flaws and tally.accepted:
            break
    assert [kind for kind in tally.flaws if kind.startswith(said)], tally
    assert len(tally.flaws) == 1, tally
    assert tally.accepted, "the harmless ones"
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("case=planted:5:"))
    number = int(first.split(":")[2])
    assert Case("planted", 5, number).chance.choice(["harmless", "harmful"]) == "harmful"
    kept = fuzz.keep / f"planted-5-{number}"
    assert (kept / "input" / "file").read_text() == "harmful"
    assert f"case=planted:5:{number}\n" in (kept / "case.txt").read_text()
    assert judge.kind_of(fuzz.alone(target, number).flaw) in tally.flaws


def test_what_is_right_is_counted(fuzz: Fuzz) -> None:
    sentences = Target("sentences", make, damage, raising(ConfigError(["optim.lr: wrong", "optim.betas: wrong"])))
    silent = Target("silent", make, damage, raising(BadData("FILE is broken; copy it again")))
    fuzz.attack([sentences, silent], 1.0, 2)
    for tally in fuzz.tallies.values():
        assert tally.refused > 3
        assert tally.accepted > 3
        assert not tally.flaws
        assert tally.slowest < 0.3
    table = told(fuzz.tallies).splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| target", "| ---", "| sentences", "| silent", "| all"]


def test_a_defect_of_a_target_itself_is_no_finding(fuzz: Fuzz) -> None:
    def wrong(rng: Random, folder: Path) -> str:
        raise ZeroDivisionError("in the damage")

    with pytest.raises(RuntimeError, match=r"planted, case 0: the fuzzer failed:[\s\S]*in the damage"):
        fuzz.attack([Target("planted", make, wrong, raising(KeyError()))], 1.0, 1)


def test_names_of_targets_are_checked() -> None:
    target = Target("one", make, damage, raising(KeyError()))
    assert chosen("", [target]) == chosen("one", [target]) == [target]
    with pytest.raises(AssertionError, match="unknown: two; there are one"):
        chosen("one,two", [target])
