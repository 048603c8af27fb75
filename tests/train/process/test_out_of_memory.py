"""A GPU out of memory, rehearsed on a CPU: the record first, then the plan beside the allocator, then the snapshot."""

from __future__ import annotations

import base64
import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conf.compose import compose
from conf.schema import RunConfig
from tests.train.plan.test_plan import LLAMA_32_1B
from train.plan import GIB
from train.process.ending import Close, leave
from train.process.out_of_memory import Witness, planned_memory
from train.ranks.group import Ranks
from train.state import TrainState

CUDA = Ranks(rank=3, world=8, local_rank=3, local_world=8, device=torch.device("cuda", 3))
FAILURE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def settled(run_dir: Path) -> RunConfig:
    model = json.dumps(LLAMA_32_1B).replace('"', "").replace(": ", ":")
    own = ["model.path=null", f"model.config={model}", "model.init=random", "model.tokenizer=train"]
    sizes = ["model.vocab_size=128256", "zero=2", "batch.global_size=64", "batch.micro_size=4", "model.recompute=none"]
    return compose(["experiment=alpaca_llama3_8b_full", *own, *sizes, f"run_dir={run_dir}"])


def snapshot(path: str) -> None:
    """One segment of 2 MiB with a block in use, in the form of torch.cuda.memory._snapshot()."""
    assert (Path(path).parents[1] / "exit" / "attempt-2-rank-3.json").exists(), "the record comes first"
    block = {"size": 2**20, "requested_size": 2**20, "address": 4096, "state": "active_allocated", "frames": []}
    free = block | {"address": 4096 + 2**20, "state": "inactive"}
    segment = {
        "device": 3, "address": 4096, "total_size": 2**21, "stream": 0, "segment_type": "large",
        "segment_pool_id": (0, 0), "allocated_size": 2**20, "active_size": 2**20, "requested_size": 2**20,
        "is_expandable": False, "frames": [], "blocks": [block, free],
    }  # fmt: skip
    Path(path).write_bytes(pickle.dumps({"segments": [segment], "device_traces": [[]] * 4, "allocator_settings": {}}))


def ended(run_dir: Path, ranks: Ranks, error: BaseException) -> int:
    run_dir.mkdir()

    def run(state: TrainState, closing: list[Close]) -> None:
        closing.append(Witness(settled(run_dir), ranks, lambda: 2))
        raise error

    return leave(run, run_dir=run_dir, ranks=ranks, attempt=lambda: 2)


def test_what_was_held_stands_beside_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = {"allocated_bytes.all.current": 70 * GIB, "reserved_bytes.all.current": 79 * GIB, "num_alloc_retries": 4}
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", snapshot)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats if device == CUDA.device else {})
    run_dir = tmp_path / "run"
    assert ended(run_dir, CUDA, FAILURE) == 71
    text = (run_dir / "logs" / "memory-2-rank-3.txt").read_text()
    figures = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith("  ")}
    planned = planned_memory(settled(run_dir), LLAMA_32_1B, CUDA)
    assert figures["reserved_bytes.all.current"] == 79.0
    assert figures["num_alloc_retries"] == 4.0
    assert figures["device"] == pytest.approx(planned.device / GIB, abs=1e-3)
    assert figures["optimizer"] == pytest.approx(12 * 1_235_814_400 / 8 / GIB, abs=1e-3)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("corral: out of memory: lower batch.micro_size")
    assert len(said) == 2
    (command,) = re.findall("`(.*)`", said[1])
    page = tmp_path / "memory.html"
    words = shlex.split(command.replace("memory.html", str(page)))
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=120, capture_output=True)
    (drawn,) = re.findall('"base64": "(.*?)"', page.read_text())
    (segment,) = pickle.loads(base64.b64decode(drawn))["segments"]
    assert (segment["total_size"], segment["allocated_size"]) == (2**21, 2**20)


def test_a_snapshot_that_cannot_be_taken_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", broken)
    run_dir = tmp_path / "run"
    assert ended(run_dir, CUDA, FAILURE) == 71
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 71


@pytest.mark.parametrize(
    ("ranks", "error", "code"), [(Ranks(), FAILURE, 71), (CUDA, ZeroDivisionError(), 70)], ids=["CPU", "defect"]
)
def test_nothing_is_written_otherwise(tmp_path: Path, ranks: Ranks, error: BaseException, code: int) -> None:
    run_dir = tmp_path / "run"
    assert ended(run_dir, ranks, error) == code
    assert not (run_dir / "logs").exists()
