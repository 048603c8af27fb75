"""A rank that fails leaves at once, its peers too, and the cause of the first failure is what the run ended with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.commands import call, finish, start, tiny_run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
EXPECTED = {
    "memory": (71, "lower batch.micro_size"),
    "ecc": (76, "a device of this node failed (CUDA error: uncorrectable ECC"),
    "peer": (76, "NCCL communicator was aborted on rank 1."),
    "defect": (70, "ZeroDivisionError: a defect"),
    "disk": (74, "Input/output error"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("failures")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


@pytest.mark.parametrize(
    "fault", [*(pytest.param(each, marks=pytest.mark.slow) for each in EXPECTED if each != "ecc"), "ecc"]
)
def test_the_first_failure_decides_and_all_ranks_are_gone_in_five_seconds(folder: Path, fault: str) -> None:
    run_dir, planted = folder / fault, folder / f"{fault}.time"
    arguments = tiny_run(folder, fault, "evaluation.at_end=false", "schedule.max_steps=2000", "zero=2")
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start([*head, "-m", "tests.end_to_end.planted", fault, str(planted), *arguments])
    code, output = finish(process, 120)
    assert code == 1, output
    exits = [json.loads((run_dir / "exit" / f"attempt-0-rank-{rank}.json").read_text()) for rank in (0, 1)]
    began = float(planted.read_text())
    assert all(0 <= each["time"] - began < 5.0 for each in exits), (began, exits)
    assert (exits[1]["code"], exits[0]["code"]) == (EXPECTED[fault][0], 76), exits
    assert exits[1]["own"] == (fault == "ecc")
    ended = json.loads((run_dir / "exit.json").read_text())
    assert ended["code"] == EXPECTED[fault][0], (ended, output)
    # Of two lost peers the earlier one says it; it may have been either that noticed first.
    assert EXPECTED[fault][1] in ended["reason"], ended
    assert ended["step"] == 2
    assert ("Traceback" in output.partition("torch/distributed/")[0]) == (fault == "defect"), output
    assert not [each for each in psutil.process_iter() if str(run_dir) in " ".join(_words(each))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
