"""Sealed checkpoints: what is not as written is found and the checkpoint before taken (all damages: tests/faults)."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.compose import compose
from conf.errors import StorageError
from launch.run_dir import refuse_changes
from tests.distributed import run_distributed
from tests.train.checkpoint.sealing import flipped, is_found, write_sealed
from tests.train.engine.test_engine import OPTIM, feed, make_engine
from train import checkpoint
from train.checkpoint import check
from train.checkpoint.check import dealt, fault_of_cover, latest_good, newest_good, read_manifest
from train.checkpoint.layout import Damaged, Stored, folder_of, in_arrays
from train.checkpoint.resume import resume_from
from train.ranks.group import Ranks


def two_steps(ranks: Ranks, folder: str) -> None:
    """Checkpoints of steps 1 and 2 of the toy model, as a run stores them."""
    engine = make_engine(ranks, 2, 1)
    for step in (1, 2):
        feed(engine, ranks, step, 1)
        engine.step(OPTIM.lr)
        extra = {"state": {"step": step}, "stream": {"rows": [step * 6]}, "base_hash": "b" * 64, "tokenizer": "t" * 64}
        saved = checkpoint.save(Path(folder), engine, ranks=ranks, attempt=0, step=step, extra=extra, keep=9)
        assert not isinstance(saved, str), saved


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    run_distributed(two_steps, 2, str(folder))
    return folder


@pytest.fixture
def run_dir(stored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored_run, tmp_path / "run"))


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pattern", ["MANIFEST.json", "MANIFEST.sha256", "state-00001-*", "rng-00000-*"])
def test_the_one_before_is_taken_and_it_is_said(
    run_dir: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = folder_of(run_dir, 2).glob(pattern)
    file.unlink()
    said = f"step-00000002 is not used: {file.name} is missing; trying the one before it"
    assert latest_good(run_dir).step == 1  # a reader changes nothing in a run, which may go on meanwhile
    assert said in capsys.readouterr().err
    assert not (run_dir / "events.jsonl").exists()
    assert newest_good(run_dir, Ranks()).step == 1
    (event,) = events(run_dir)
    assert (event["kind"], event["step"], event["reason"]) == ("fallback", 2, f"{file.name} is missing")
    assert Path(event["path"]).name.startswith(".corrupt-step-00000002-")
    assert Path(event["path"]).is_dir()
    assert said in capsys.readouterr().out
    (folder_of(run_dir, 1) / "MANIFEST.json").write_text("{}")
    with pytest.raises(StorageError, match=r"no checkpoint that verifies \(step-00000001: MANIFEST\.json does not"):
        newest_good(run_dir, Ranks())


def test_an_old_checkpoint_without_a_seal_is_refused_until_its_user_seals_it(run_dir: Path) -> None:
    for step in (1, 2):
        path = folder_of(run_dir, step)
        write_sealed(path, read_manifest(path) | {"version": 1})
        (path / "MANIFEST.sha256").unlink()
    with pytest.raises(StorageError, match=r"stored no sum of MANIFEST\.json") as caught:
        newest_good(run_dir, Ranks())
    assert not isinstance(caught.value, Damaged)
    assert path.is_dir()  # it is not damaged, so it keeps its name
    subprocess.run(str(caught.value).split("seal it: ")[1], shell=True, check=True)
    assert newest_good(run_dir, Ranks()).step == 2


def test_a_newer_version_is_refused_and_keeps_its_name(run_dir: Path) -> None:
    path = folder_of(run_dir, 2)
    write_sealed(path, read_manifest(path) | {"version": 3})
    with pytest.raises(StorageError, match="has version 3, and this release reads 1 to 2"):
        newest_good(run_dir, Ranks())
    assert path.is_dir()


def manifest_with(pieces: list[list[Any]], shape: list[int]) -> dict[str, Any]:
    return {"files": {"a": {}, "b": {}}, "tensors": {"w": {"shape": shape, "pieces": pieces}}}


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([["b", 4, 2], ["a", 0, 4]], ""),
        ([["a", 0, 4], ["b", 3, 3]], "w: elements from 3 on are stored twice"),
        ([["a", 0, 6], ["b", 0, 6]], "w: elements from 0 on are stored twice"),
        ([["a", 0, 3], ["b", 4, 2]], "w: elements from 3 on are stored nowhere"),
        ([["a", 1, 5]], "w: elements from 0 on are stored nowhere"),
        ([["a", 0, 5]], "w: 5 elements are stored, its shape [2, 3] has 6"),
        ([["a", 0, 7]], "w: 7 elements are stored, its shape [2, 3] has 6"),
        ([], "w: 0 elements are stored, its shape [2, 3] has 6"),
        ([["a", 0, 4], ["c", 4, 2]], "w lies in c, which MANIFEST.json does not list"),
    ],
)
def test_every_element_is_stored_exactly_once(pieces: list[list[Any]], fault: str) -> None:
    assert fault_of_cover(manifest_with(pieces, [2, 3])) == fault


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x"])
def test_a_manifest_names_no_file_outside_of_its_checkpoint(name: str) -> None:
    manifest = {"files": {name: {}}, "tensors": {"w": {"shape": [1], "pieces": [[name, 0, 1]]}}}
    assert fault_of_cover(manifest) == f"MANIFEST.json names a file outside of its folder: {name}"


def test_a_writer_that_leaves_a_gap_publishes_nothing(run_dir: Path) -> None:
    (fault,) = run_distributed(save_with_a_gap, 1, str(run_dir))
    assert "cannot publish" in fault
    assert "inner.weight: 0 elements are stored, its shape [12, 12] has 144" in fault
    assert latest_good(run_dir).step == 2


def save_with_a_gap(ranks: Ranks, folder: str) -> str:
    engine = make_engine(ranks, 0, 1)
    found = [fragment for fragment in engine.fragments() if fragment.name != "inner.weight"]
    with mock.patch.object(engine, "fragments", return_value=found):
        fault = checkpoint.save(Path(folder), engine, ranks=ranks, attempt=0, step=3, extra={}, keep=9)
    assert isinstance(fault, str)
    return fault


def test_a_range_is_found_in_the_pieces_that_hold_it() -> None:
    """Against a look at every piece."""
    pieces = [["b", 4, 2], ["a", 0, 4], ["a", 9, 1], ["c", 6, 3]]
    manifest = {"files": {key: {} for key in "abc"}, "tensors": {"w": {"shape": [10], "pieces": pieces}}}
    found = in_arrays(manifest)["tensors"]["w"]["pieces"]
    for start in range(10):
        for end in range(start + 1, 11):
            held = [piece for piece in pieces if piece[1] < end and start < piece[1] + piece[2]]
            assert [list(piece) for piece in found.between(start, end)] == sorted(held, key=lambda piece: piece[1])
    assert in_arrays(in_arrays(manifest))["tensors"]["w"]["pieces"].files == ["a", "b", "c"]


def test_files_are_dealt_by_size_each_once() -> None:
    files = {f"f{index}": {"bytes": size} for index, size in enumerate([9, 1, 1, 8, 2, 7, 1, 1])}
    for count in (1, 2, 3, 8, 20):
        shares = dealt(files, count)
        assert sorted(name for share in shares for name in share) == sorted(files)
        loads = [sum(files[name]["bytes"] for name in share) for share in shares]
        assert max(loads) <= max(9, -(-30 // count) + 1), (count, loads)


def search(ranks: Ranks, folder: str) -> tuple[list[tuple[str, int]], int, dict[str, Any]]:
    """What this rank hashed on the way to the newest good checkpoint; its step and MANIFEST."""
    hashed: list[tuple[str, int]] = []

    def counted(file: Path) -> str:
        hashed.append((f"{file.parent.name}/{file.name}", file.stat().st_size))
        return check_sum(file)

    check_sum = check.sha256_of
    with mock.patch.object(check, "sha256_of", counted):
        found = newest_good(Path(folder), ranks)
    places = {name: list(entry["pieces"].between(0, 10**9)) for name, entry in found.manifest["tensors"].items()}
    return hashed, found.step, {**found.manifest, "tensors": places}


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_ranks_hash_every_file_once_and_agree(run_dir: Path, world: int) -> None:
    """Four files on as many, fewer and more ranks; the damage is seen by one rank alone."""
    (file,) = folder_of(run_dir, 2).glob("state-00001-*")
    file.write_bytes(flipped(file.read_bytes(), 999))
    answers = run_distributed(search, world, str(run_dir))
    names = [name for hashed, *_ in answers for name, _ in hashed]
    files = [f"{kind}-0000{rank}-of-00002.safetensors" for kind in ("rng", "state") for rank in (0, 1)]
    assert sorted(names) == [f"step-0000000{step}/{name}" for step in (1, 2) for name in files]
    largest = max(size for hashed, *_ in answers for _, size in hashed)
    loads = [sum(size for name, size in hashed if "step-00000001" in name) for hashed, *_ in answers]
    assert max(loads) <= max(largest, -(-sum(loads) // world)) + largest / 4  # no rank has much more than its share
    assert all((step, manifest) == (1, answers[0][2]) for _, step, manifest in answers)
    (event,) = events(run_dir)
    assert event["reason"] == f"{file.name} does not have its recorded sha256"
    assert len(list((run_dir / "checkpoints").glob(".corrupt-*"))) == 1


def load_at(ranks: Ranks, folder: str) -> tuple[int, dict[str, torch.Tensor]]:
    """The step that a restart continues from, and the weights of the model then."""
    engine = make_engine(ranks, 3, 1)

    def load(stored: Stored) -> None:
        with stored:
            ranks.together(lambda: stored.rng(ranks.rank))
            engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"], stored.extras)

    found = resume_from(newest_good(Path(folder), ranks), Path(folder), ranks, load)
    assert found is not None
    with engine.whole(list(engine.parameters.values())):
        return found.step, {name: parameter.detach().clone() for name, parameter in engine.parameters.items()}


def spoil(path: Path, how: str) -> str:
    """Change a file of one of two ranks and seal it again, so that only reading shows the fault; returns its name."""
    manifest = read_manifest(path)
    (file,) = path.glob("state-00001-*")
    content = load_file(file)
    lost = content.pop(sorted(content)[0])
    if how == "another shape":
        content[sorted(manifest["tensors"])[0] + "::weight"] = torch.zeros(len(lost) + 1)
    save_file(content, file)
    if how == "no safetensors":
        file.write_bytes(b"\xff" * 100)
    write_sealed(path, {**manifest, "step": int(path.name.removeprefix("step-"))})
    assert not is_found(path)
    return file.name


def test_what_verifies_but_cannot_be_loaded_is_passed_over_too(run_dir: Path) -> None:
    for step in (3, 4):
        shutil.copytree(folder_of(run_dir, 2), folder_of(run_dir, step))
    ways = {2: "a lost tensor", 3: "another shape", 4: "no safetensors"}
    names = {step: spoil(folder_of(run_dir, step), how) for step, how in ways.items()}
    wanted = checkpoint.read_weights(folder_of(run_dir, 1))
    for step, weights in run_distributed(load_at, 2, str(run_dir)):
        assert step == 1
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert [event["step"] for event in events(run_dir)] == [4, 3, 2]
    assert all(names[event["step"]] in event["reason"] for event in events(run_dir))
    assert "says F32" in events(run_dir)[1]["reason"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"files": []}, "files: Input should be a valid dictionary"),
        ({"files": {"a": {"bytes": 3}}}, "files.a.sha256: Field required"),
        ({"tensors": {"a": {"shape": [2.5], "pieces": []}}}, "tensors.a.shape.0: Input should be a valid integer"),
        ({"tensors": {"a": {"shape": [10**30], "pieces": []}}}, "tensors.a.shape.0: Input should be less than"),
        ({"step": "2"}, "step: Input should be a valid integer"),
        ({"world": None}, "world: Input should be a valid integer"),
        ({"base_hash": 3}, "base_hash: Input should be a valid string"),
        ({"base_files": "x"}, "base_files: Input should be a valid list"),
        ({"state": []}, "state: Input should be a valid dictionary"),
        ({"extras": [None]}, "extras.0: Input should be a valid string"),
    ],
)
def test_a_sealed_manifest_of_another_shape_is_no_checkpoint(run_dir: Path, changed: dict[str, Any], said: str) -> None:
    """The seal fits: it says what the bytes are, not who wrote them."""
    path = folder_of(run_dir, 2)
    content = json.dumps(read_manifest(path) | changed).encode()
    (path / "MANIFEST.json").write_bytes(content)
    (path / "MANIFEST.sha256").write_bytes(check.seal_of(content))
    with pytest.raises(Damaged) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"MANIFEST.json is not that of a checkpoint ({said}")


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b"[]", b"3", b"{}", b'{"version": 2}'])
def test_a_sealed_text_that_is_no_manifest_is_no_checkpoint(run_dir: Path, content: bytes) -> None:
    path = folder_of(run_dir, 2)
    (path / "MANIFEST.json").write_bytes(content)
    (path / "MANIFEST.sha256").write_bytes(check.seal_of(content))
    with pytest.raises(Damaged, match=r"MANIFEST\.json is not that of a checkpoint \("):
        read_manifest(path)
    refuse_changes(replace(compose([]), run_dir=str(run_dir)))  # the launcher leaves it to the run
