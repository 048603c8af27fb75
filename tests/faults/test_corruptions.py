"""No damage to a checkpoint goes unseen, whatever file, bit or length it strikes; the one before is taken, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conf.errors import StorageError
from tests.distributed import run_distributed
from tests.faults.corruptions import FLIPS, FLIPS_ELSEWHERE, sweep, told
from tests.train.checkpoint.test_check import two_steps
from train.checkpoint.check import latest_good, newest_good
from train.checkpoint.layout import MANIFEST, SEAL, folder_of
from train.ranks.group import Ranks


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    run_distributed(two_steps, 2, str(folder))
    return folder


def test_no_damage_is_accepted(run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    found = sweep(run_dir, seed=0)
    print(f"\n{told(found)}\n\n{found.tried.total()} damages, {len(found.accepted)} accepted")
    assert found.accepted == []
    flips = {name: count for (name, kind), count in found.tried.items() if kind == "bit flipped"}
    assert len(flips) == 2 + 2 * 2  # the MANIFEST and its seal; state and random states of two ranks
    assert all(count == FLIPS.get(name, FLIPS_ELSEWHERE) for name, count in flips.items())
    assert flips[MANIFEST] >= 1500
    assert sum(flips.values()) >= 3000
    assert {name for (name, kind), _ in found.tried.items() if kind == "deleted"} == {*flips}
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert latest_good(run_dir).step == 2


@pytest.mark.parametrize("name", [MANIFEST, SEAL, "state-00000-of-00002.safetensors", "rng-00001-of-00002.safetensors"])
def test_without_a_good_one_each_is_refused_by_name(run_dir: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for step in (1, 2):
        file = folder_of(run, step) / name
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"holds no checkpoint that verifies \(step-00000002: .*; step-00000001: "):
        newest_good(run, Ranks())


LATESTS = [None, "", "step-99999999\n", "\x00\xff", "step-00000001\n", "../step-00000001", "step-00000002", "\n", "1"]


@pytest.mark.parametrize("content", LATESTS)
def test_latest_is_for_people_alone(run_dir: Path, tmp_path: Path, content: str | None) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    latest = run / "checkpoints" / "LATEST"
    assert latest.read_text() == "step-00000002\n"
    latest.unlink()
    if content is not None:
        latest.write_text(content)
    assert latest_good(run).step == newest_good(run, Ranks()).step == 2


def test_swapped_folders_are_both_found(run_dir: Path, tmp_path: Path) -> None:
    """Each verifies, and is not what its name says."""
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    one, two = folder_of(run, 1), folder_of(run, 2)
    one.rename(run / "aside")
    two.rename(one)
    (run / "aside").rename(two)
    with pytest.raises(
        StorageError, match=r"step-00000002: MANIFEST\.json is that of step 1; step-00000001: .* of step 2"
    ):
        newest_good(run, Ranks())
