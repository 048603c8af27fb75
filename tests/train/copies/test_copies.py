"""Copies of checkpoints: whole or not there, whatever happens; the newest that verifies comes home to a fresh disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from conf.errors import CannotCreate, ConfigError, CorralError, PermissionDenied, StorageError, Unavailable
from conf.schema import CheckpointConfig, ModelConfig, ResumeConfig, RunConfig
from tests.end_to_end.commands import ROOT, environment, lines
from tests.tiny import tiny_run
from tests.train.checkpoint.sealing import write_sealed
from train.checkpoint.commit import prune
from train.copies import Copied, Copier, NotCopied, bring_home
from train.copies.destination import Destination
from train.ranks.group import Ranks


def checkpoint(run_dir: Path, step: int, size: int = 1000) -> None:
    """A sealed folder, which nobody loads here, and the records that a run has by then."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"state-{number}").write_bytes(bytes([step, number]) * size)
    write_sealed(folder, {"step": step, "files": {f"state-{number}": {} for number in range(3)}})
    (run_dir / "run.yaml").write_text(f"seed: {step}\n")
    with (run_dir / "ledger.jsonl").open("a") as ledger:
        ledger.write(f'{{"step": {step}}}\n')


def config(run_dir: Path, copy_to: str) -> RunConfig:
    return replace(tiny_run(run_dir, ModelConfig(path="x")), checkpoint=CheckpointConfig(copy_to=copy_to))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(copier: Copier, step: int) -> Copied | NotCopied:
    copier.begin(step)
    (outcome,) = copier.finish(60)
    return outcome


@pytest.fixture(params=["memory", "file", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A value of ``checkpoint.copy_to``."""
    yield {"memory": "memory://bucket/copies", "file": f"file://{tmp_path}/url", "folder": f"{tmp_path}/plain/"}[
        request.param
    ]
    fsspec.filesystem("memory").store.clear()


def test_copies_come_home_to_a_fresh_disk(tmp_path: Path, place: str) -> None:
    there = Destination(f"{place.rstrip('/')}/tiny")
    copier = Copier(tmp_path / "run", there, keep=2)
    for step in (3, 6, 9):
        checkpoint(tmp_path / "run", step)
        outcome = copied(copier, step)
        assert isinstance(outcome, Copied), outcome
        assert outcome.bytes == 6000
    assert there.steps() == there.begun() == [9, 6]  # 3 is pruned
    assert there.read("LATEST") == b"step-00000009\n"
    assert not list((tmp_path / "run" / "checkpoints").glob(".copy-*"))
    again = copied(copier, 9)
    assert isinstance(again, Copied)
    assert again.bytes == 0  # it is there already
    fresh = tmp_path / "fresh"
    bring_home(config(fresh, place), fresh, Ranks())
    here, home = (contents(each / "checkpoints" / "step-00000009") for each in (tmp_path / "run", fresh))
    assert here == home
    assert [path.name for path in (fresh / "checkpoints").iterdir() if path.is_dir()] == ["step-00000009"]
    assert (fresh / "checkpoints" / "LATEST").read_text() == "step-00000009\n"
    assert (fresh / "run.yaml").read_text() == "seed: 9\n"
    assert [line["step"] for line in lines(fresh / "ledger.jsonl")] == [3, 6, 9]
    there.remove("step-00000009/state-1")  # what is home is not looked for again
    bring_home(config(fresh, place), fresh, Ranks())


def test_a_damaged_copy_is_passed_over(tmp_path: Path, place: str) -> None:
    there = Destination(f"{place.rstrip('/')}/tiny")
    copier = Copier(tmp_path / "run", there, keep=2)
    for step in (3, 6):
        checkpoint(tmp_path / "run", step)
        copied(copier, step)
    there.write("step-00000006/state-1", b"\6\2" * 1000)
    fresh = tmp_path / "fresh"
    bring_home(config(fresh, place), fresh, Ranks())
    assert (fresh / "checkpoints" / "step-00000003").is_dir()
    assert not (fresh / "checkpoints" / "step-00000006").exists()
    (event,) = lines(fresh / "events.jsonl")
    assert (event["kind"], event["step"]) == ("fallback", 6)
    assert event["reason"] == "state-1 does not have its recorded size and sha256"
    there.write("step-00000003/records/run.yaml", b"seed: 4\n")
    with pytest.raises(StorageError, match=r"verifies \(step-00000006: state-1 .*; step-00000003: records"):
        bring_home(config(tmp_path / "none", place), tmp_path / "none", Ranks())
    assert not (tmp_path / "none" / "run.yaml").exists()
    assert not list((tmp_path / "none" / "checkpoints").iterdir())


def test_a_copy_without_its_seal_is_none(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", 3)
    there = Destination(f"{tmp_path}/there/tiny")
    copied(Copier(tmp_path / "run", there, keep=2), 3)
    there.remove("step-00000003/MANIFEST.sha256")
    fresh = tmp_path / "fresh"
    bring_home(config(fresh, f"{tmp_path}/there"), fresh, Ranks())
    assert not fresh.exists()


def test_what_does_not_read_back_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "run", 3)
    there = Destination(f"{tmp_path}/there")
    copier = Copier(tmp_path / "run", there, keep=2)
    copied(copier, 3)
    checkpoint(tmp_path / "run", 6)
    parts = there.parts
    monkeypatch.setattr(there, "parts", lambda name: (part.replace(b"\6\2", b"\6\3") for part in parts(name)))
    outcome = copied(copier, 6)
    assert isinstance(outcome, NotCopied)
    assert outcome.reason == f"{tmp_path}/there/step-00000006/state-2 does not hold what was written to it"
    assert there.steps() == [3]
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "state-0").write_bytes(b"rotten")
    outcome = copied(copier, 6)
    assert isinstance(outcome, NotCopied)
    assert "state-0 does not have its recorded sha256" in outcome.reason
    assert there.steps() == [3]


def test_a_past_that_the_run_has_left_is_removed(tmp_path: Path) -> None:
    there = Destination(f"{tmp_path}/there")
    copier = Copier(tmp_path / "run", there, keep=2)
    for step in (3, 9, 6):  # 9 could not be loaded, and the run went on from 3
        checkpoint(tmp_path / "run", step)
        copied(copier, step)
    assert there.begun() == [6, 3]


class Gate:
    """Holds a copy at its first file until it is opened."""

    def __init__(self, there: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        put = there.put

        def held(*arguments: object) -> object:
            self.reached.set()
            self.open.wait(30)
            return put(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(there, "put", held)


def test_the_newest_is_copied_next_and_a_pruned_one_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, there = tmp_path / "run", Destination(f"{tmp_path}/there")
    gate, copier = Gate(there, monkeypatch), Copier(run_dir, there, keep=2)
    checkpoint(run_dir, 1)
    began = time.monotonic()
    copier.begin(1)
    assert gate.reached.wait(30)
    for step in (2, 3, 4):
        checkpoint(run_dir, step)
        prune(run_dir, 2)
        copier.begin(step)
        assert copier.ended() is None
    assert time.monotonic() - began < 20  # nothing waited for the copy
    assert not (run_dir / "checkpoints" / "step-00000001").exists()
    gate.open.set()
    assert [(type(each), each.step) for each in copier.finish(60)] == [(Copied, 1), (Copied, 4)]
    assert there.steps() == [4, 1]


def test_the_end_waits_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, there = tmp_path / "run", Destination(f"{tmp_path}/there")
    gate, copier = Gate(there, monkeypatch), Copier(run_dir, there, keep=2)
    checkpoint(run_dir, 1)
    copier.begin(1)
    began = time.monotonic()
    (outcome,) = copier.finish(0.5)
    assert time.monotonic() - began < 5
    assert outcome == NotCopied(1, "not finished within 0 s of the run's end")
    gate.open.set()
    assert [type(each) for each in copier.finish(60)] == [NotCopied]  # given up at the next part
    assert there.steps() == []


KILLED = """
import sys, time
from pathlib import Path
from train.copies.copier import Copier
from train.copies.destination import Destination

there = Destination(sys.argv[2])
put = there.put
def slow(source, name, go_on):
    if name.endswith("step-00000006/state-1"):
        print("here", flush=True)
        def go_on():
            time.sleep(60)
    return put(source, name, go_on)
there.put = slow
copier = Copier(Path(sys.argv[1]), there, keep=2)
copier.begin(6)
copier.finish(60)
"""


def test_a_kill_inside_a_copy_leaves_the_one_before(tmp_path: Path) -> None:
    run_dir, there = tmp_path / "run", Destination(f"{tmp_path}/there/tiny")
    checkpoint(run_dir, 3)
    copied(Copier(run_dir, there, keep=2), 3)
    checkpoint(run_dir, 6)
    command = [sys.executable, "-c", KILLED, str(run_dir), there.url]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert there.begun() == [6, 3]
    assert there.steps() == [3]
    fresh = tmp_path / "fresh"
    bring_home(config(fresh, f"{tmp_path}/there"), fresh, Ranks())
    assert (fresh / "checkpoints" / "LATEST").read_text() == "step-00000003\n"
    assert isinstance(copied(Copier(run_dir, there, keep=2), 6), Copied)
    assert there.steps() == [6, 3]


def test_a_kill_on_the_way_home_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, there = tmp_path / "run", Destination(f"{tmp_path}/there/tiny")
    checkpoint(run_dir, 3)
    copied(Copier(run_dir, there, keep=2), 3)
    fresh = tmp_path / "fresh"
    (fresh / "checkpoints" / ".tmp-home-step-00000003").mkdir(parents=True)
    (fresh / "checkpoints" / ".tmp-home-step-00000003" / "state-0").write_bytes(b"half")
    bring_home(config(fresh, f"{tmp_path}/there"), fresh, Ranks())
    assert contents(fresh / "checkpoints" / "step-00000003") == contents(run_dir / "checkpoints" / "step-00000003")


def test_a_folder_of_another_user_takes_no_copies(tmp_path: Path, give: Callable[[Path], Path]) -> None:
    """Nor does a run begin from what lies there."""
    place = tmp_path / "place"
    (place / "tiny").mkdir(parents=True)
    give(place / "tiny")
    for url in (str(place / "tiny"), f"file://{place / 'tiny'}"):
        with pytest.raises(PermissionDenied, match=rf"^checkpoint\.copy_to: {place}/tiny belongs to user 54321"):
            Destination(url)


def test_mistakes_have_a_name(tmp_path: Path) -> None:
    def start(copy_to: str, run_dir: Path = tmp_path / "fresh") -> CorralError:
        with pytest.raises(CorralError) as caught:
            bring_home(config(run_dir, copy_to), run_dir, Ranks())
        return caught.value

    unknown = start("nowhere://bucket/x")
    assert isinstance(unknown, ConfigError)
    assert str(unknown).startswith("checkpoint.copy_to: nowhere://bucket/x/tiny cannot be opened")
    try:
        import s3fs  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        missing = start("s3://bucket/x")
        assert isinstance(missing, Unavailable)
        assert "needs a package that is not installed" in str(missing)
    itself = tmp_path / "tiny"
    assert "is run_dir itself" in str(start(str(tmp_path), itself))
    checkpoint(tmp_path / "run", 3)
    copied(Copier(tmp_path / "run", Destination(f"{tmp_path}/there/tiny"), keep=2), 3)
    cfg = replace(config(tmp_path / "fresh", f"{tmp_path}/there"), resume=ResumeConfig(mode="never"))
    with pytest.raises(CannotCreate, match="holds copies of checkpoints and resume=never"):
        bring_home(cfg, tmp_path / "fresh", Ranks())
    shutil.rmtree(tmp_path / "there")
    bring_home(cfg, tmp_path / "fresh", Ranks())
