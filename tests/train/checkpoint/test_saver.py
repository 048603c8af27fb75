"""Saves in the background: what is stored is the snapshot's step, whatever training does meanwhile, or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save

from tests.distributed import run_distributed
from tests.train.engine.test_engine import OPTIM, feed, make_engine
from train.checkpoint import Failed, Published, Saver, latest_good, saver
from train.checkpoint.commit import write_part
from train.checkpoint.files import write_tensors
from train.checkpoint.layout import folder_of, steps_on_disk
from train.checkpoint.random_states import random_states
from train.checkpoint.snapshot import HostCopy, Snapshot, available_bytes, snapshot
from train.engine import Engine
from train.ranks.group import Ranks


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    """Byte for byte, so whatever reads safetensors reads them; the sum is that of the file."""
    tensors = {
        "b::weight": torch.arange(70_000, dtype=torch.float32),
        "a::weight": torch.randn(3),
        "empty": torch.zeros(0),
        "states": torch.arange(7),
        "bytes": torch.arange(13, dtype=torch.uint8),
        "matrix": torch.randn(4, 6).t(),
    }
    entry = write_tensors(tmp_path / "x", tensors)
    content = (tmp_path / "x").read_bytes()
    assert content == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    read = load_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@contextmanager
def held_back() -> Iterator[threading.Event]:
    """Inside, no thread writes before the event is set."""
    go = threading.Event()

    def later(*given: Any) -> Any:
        assert go.wait(60)
        return write_part(*given)

    with mock.patch.object(saver, "write_part", later):
        yield go


def one_step(engine: Engine, ranks: Ranks, step: int) -> None:
    feed(engine, ranks, step, 1)
    engine.step(OPTIM.lr)


def begun(ranks: Ranks, folder: str, stage: int) -> tuple[Engine, Saver, dict[str, Any]]:
    """An engine after one step that trained on while the thread was held back; what was to be stored of it."""
    engine = make_engine(ranks, stage, 1)
    one_step(engine, ranks, 0)
    saves = Saver(Path(folder), engine, ranks=ranks, attempt=0, keep=2, background="always")
    extra = {"state": {"step": 1}}
    then = {
        "tensors": {name: tensor.clone() for name, tensor in snapshot(engine, ranks).tensors.items()},
        "random": random_states(ranks),
        "optimizer_steps": engine.optimizer_steps,
    }
    assert saves.begin(1, extra) is None
    extra["state"]["step"] = 99  # training counts on
    torch.rand(3)
    for step in (1, 2):
        one_step(engine, ranks, step)
    return engine, saves, then


def train_on_while_it_writes(ranks: Ranks, folder: str, stage: int) -> dict[str, Any]:
    with held_back() as go:
        engine, saves, then = begun(ranks, folder, stage)
        writing, on_disk = saves.writing, steps_on_disk(Path(folder))
        changed = snapshot(engine, ranks).tensors
        moved = any(not torch.equal(changed[name], value) for name, value in then["tensors"].items())
        go.set()
        outcome = saves.finish()
    assert isinstance(outcome, Published), outcome
    assert (saves.step, saves.writing, saves.finish()) == (None, False, None)
    manifest = json.loads((outcome.path / "MANIFEST.json").read_text())
    own = f"{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    stored, rng = load_file(outcome.path / f"state-{own}"), load_file(outcome.path / f"rng-{own}")
    return {
        "meanwhile": (writing, on_disk, moved),
        "equal": stored.keys() == then["tensors"].keys()
        and all(torch.equal(stored[name], value) for name, value in then["tensors"].items()),
        "random": all(torch.equal(rng[name], value) for name, value in then["random"].items()),
        "manifest": [manifest["step"], manifest["state"], manifest["optimizer_steps"] == then["optimizer_steps"]],
        "times": 0 < outcome.seconds <= outcome.after,
    }


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_step_of_the_snapshot_is_stored_while_training_goes_on(tmp_path: Path, stage: int) -> None:
    for found in run_distributed(train_on_while_it_writes, 2, str(tmp_path), stage):
        assert found == {
            "meanwhile": (True, [], True),
            "equal": True,
            "random": True,
            "manifest": [1, {"step": 1}, True],
            "times": True,
        }
    assert latest_good(tmp_path).step == 1


def fail_on_one_rank(ranks: Ranks, folder: str) -> list[Any]:
    """Rank 1's disk is full in the thread; then it has room again."""

    def full(*given: Any) -> Any:
        return (f"rank {ranks.rank} cannot write: No space left on device", {}) if ranks.rank else write_part(*given)

    engine = make_engine(ranks, 2, 1)
    one_step(engine, ranks, 0)
    saves = Saver(Path(folder), engine, ranks=ranks, attempt=0, keep=2, background="always")
    with mock.patch.object(saver, "write_part", full):
        saves.begin(1, {})
        one_step(engine, ranks, 1)
        failed = saves.finish()
    left = ranks.broadcast(sorted(path.name for path in Path(folder, "checkpoints").iterdir()))
    one_step(engine, ranks, 2)
    saves.begin(3, {})
    published = saves.finish()
    return [failed, left, isinstance(published, Published)]


def test_a_thread_that_fails_on_one_rank_discards_the_save_on_all(tmp_path: Path) -> None:
    failed = Failed(1, "rank 1 cannot write: No space left on device")
    assert run_distributed(fail_on_one_rank, 2, str(tmp_path)) == [[failed, [], True]] * 2
    assert latest_good(tmp_path).step == 3


def fail_after_the_rename(ranks: Ranks, folder: str) -> list[Any]:
    """The third save's folder has its name, and the disk refuses to flush it; then LATEST; then nothing more."""
    engine = make_engine(ranks, 2, 1)
    saves = Saver(Path(folder), engine, ranks=ranks, attempt=0, keep=2)
    found: list[Any] = []
    for step, place in enumerate([None, None, "checkpoints", ".LATEST", None], 1):

        def flush(path: Path, place: str | None = place) -> None:
            if path.name == place:
                raise OSError(errno.EIO, "Input/output error")

        with mock.patch("train.checkpoint.commit.fsync", flush):
            saves.begin(step, {})
            outcome = saves.finish()
        assert isinstance(outcome, Published), outcome
        found.append((outcome.left, ranks.broadcast(steps_on_disk(Path(folder)))))
    return found


def test_an_error_after_the_rename_is_no_failed_save_and_nothing_older_is_deleted(tmp_path: Path) -> None:
    for found in run_distributed(fail_after_the_rename, 2, str(tmp_path)):
        assert [steps for _, steps in found] == [[1], [2, 1], [3, 2, 1], [4, 3, 2, 1], [5, 4]]
        told = [left for left, _ in found]
        assert told[:2] == ["", ""] == [*told[4:], ""]
        for step in (3, 4):
            assert told[step - 1] == (
                f"{folder_of(tmp_path, step)} is published, but its name may not outlast a power cut: Input/output "
                "error; older checkpoints stay"
            )
    assert latest_good(tmp_path).step == 5


def test_a_part_that_does_not_fit_frees_its_space_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks agree two boundaries later; until then the run must be able to write its records."""

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        path.write_bytes(b"a part")
        if path.name.startswith("rng"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return {"bytes": 6, "sha256": ""}

    monkeypatch.setattr("train.checkpoint.commit.write_tensors", full)
    (tmp_path / "state-00001-of-00002.safetensors").write_bytes(b"of another rank")
    fault, entry = write_part(tmp_path, Snapshot({}, {}, {}), Ranks())
    assert (fault, entry) == (f"rank 0 cannot write to {tmp_path}: No space left on device", {})
    assert [path.name for path in tmp_path.iterdir()] == ["state-00001-of-00002.safetensors"]


def boundaries(ranks: Ranks, folder: str) -> list[Any]:
    """Which exchange happens at which boundary, and what the disk holds then."""
    engine = make_engine(ranks, 2, 1)
    one_step(engine, ranks, 0)
    saves = Saver(Path(folder), engine, ranks=ranks, attempt=0, keep=2, background="always")
    saves.begin(1, {})
    with pytest.raises(AssertionError, match="the save of step 1 is in flight"):
        saves.begin(2, {})
    while saves.writing:
        threading.Event().wait(0.01)
    ranks.barrier()
    first = (saves.advance(), saves.step)
    while saves.writing:
        threading.Event().wait(0.01)
    ranks.barrier()
    return [first, type(saves.advance()).__name__, saves.step, folder_of(Path(folder), 1).is_dir()]


def test_a_save_takes_two_boundaries_after_its_own(tmp_path: Path) -> None:
    assert run_distributed(boundaries, 2, str(tmp_path)) == [[(None, 1), "Published", None, True]] * 2


def save_without_room(ranks: Ranks, folder: str) -> list[Any]:
    notes: list[str] = []
    engine = make_engine(ranks, 2, 1)
    with mock.patch("train.checkpoint.snapshot.available_bytes", return_value=1000 * (1 + ranks.rank)):
        saves = Saver(Path(folder), engine, ranks=ranks, attempt=0, keep=2, background="auto", note=notes.append)
        saves.begin(1, {})
        saves.finish()
        saves.begin(2, {})
        saves.finish()
    return [saves.background, notes]


def test_hosts_without_room_for_a_copy_save_while_training_waits(tmp_path: Path) -> None:
    for found, notes in run_distributed(save_without_room, 2, str(tmp_path)):
        assert found == "never"
        (note,) = notes
        assert note.startswith("checkpoints are written while training waits, not in the background: the copies of the")
        assert note.endswith("and they may take 80% of the 0.0 GiB that are available")
    assert latest_good(tmp_path).step == 2


def test_available_memory_is_what_the_machine_and_the_control_groups_leave(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       100 kB\nMemAvailable:   64 kB\n",
        "proc/self/cgroup": "9:memory:/old\n0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "40000\n",
        "sys/fs/cgroup/job/memory.current": "30000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 22000\ninactive_file 5000\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "30000\n",
        "sys/fs/cgroup/job/step/memory.stat": "anon 22000\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_bytes(tmp_path) == 15000
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 64 * 1024
    assert available_bytes() > 2**20


def test_the_copy_keeps_its_memory() -> None:
    class Whole:
        def __init__(self, size: int) -> None:
            self.tensors = {"a": torch.randn(size), "b": torch.randn(5)}
            self.pieces: dict[str, list[int]] = {}
            self.random: dict[str, torch.Tensor] = {}

    copy, one, other = HostCopy(), Whole(3), Whole(3)
    first = copy.of(one)  # type: ignore[arg-type]
    assert torch.equal(first.tensors["a"], one.tensors["a"])
    one.tensors["a"].zero_()
    assert not torch.equal(first.tensors["a"], one.tensors["a"])
    second = copy.of(other)  # type: ignore[arg-type]
    assert second.tensors["a"].data_ptr() == first.tensors["a"].data_ptr()
    assert torch.equal(second.tensors["b"], other.tensors["b"])
    larger = Whole(9)
    assert torch.equal(copy.of(larger).tensors["a"], larger.tensors["a"])  # type: ignore[arg-type]
