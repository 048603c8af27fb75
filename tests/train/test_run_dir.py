"""A run's folder: claimed once, refused in one sentence, its exits reduced by cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import CannotCreate, ConfigError, DistributedFailure, OutOfMemory, Requeue
from conf.exits import ExitRecord, mark_start, merge_exits, next_attempt, reduce_exits, write_rank_exit
from train.distributed import Ranks
from train.ending import leave, named
from train.run_dir import append, batch_digest, claim
from train.state import TrainState


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    lock = claim(tmp_path / "run")
    script = f"from train.run_dir import claim; from pathlib import Path; claim(Path({str(tmp_path / 'run')!r}))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "in use by process" in found.stderr
    lock.close()
    claim(tmp_path / "run").close()


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreate, match=r"cannot be created.*set run_dir to another folder"):
        claim(tmp_path / "file" / "run")


def test_the_ledger_digest_depends_on_order_and_content(tmp_path: Path) -> None:
    assert batch_digest([1, 2**64 - 1]) == batch_digest([1, 2**64 - 1])
    assert len({batch_digest(each) for each in ([1, 2], [2, 1], [1], [1, 2, 3], [])}) == 5
    append(tmp_path / "ledger.jsonl", {"step": 1})
    append(tmp_path / "ledger.jsonl", {"step": 2})
    assert [json.loads(line)["step"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == [1, 2]


def record(code: int, step: int = 3, attempt: int = 0) -> ExitRecord:
    return ExitRecord(code, f"code {code}", step, "", attempt)


@pytest.mark.parametrize(
    ("codes", "wanted"), [([0, 0], 0), ([76, 65], 65), ([75, 75], 75), ([70, 76], 70), ([0, None], 76), ([76, 78], 78)]
)
def test_exits_are_reduced_by_cause(tmp_path: Path, codes: list[int | None], wanted: int) -> None:
    for rank, code in enumerate(codes):
        if code is not None:
            write_rank_exit(tmp_path, rank, record(code, step=rank))
    assert reduce_exits(tmp_path, 0, len(codes)).code == wanted
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == wanted


def test_attempts_count_up_even_if_nobody_wrote_an_exit(tmp_path: Path) -> None:
    assert next_attempt(tmp_path) == 0
    mark_start(tmp_path, 0)
    assert next_attempt(tmp_path) == 1
    write_rank_exit(tmp_path, 1, record(75, attempt=4))
    assert next_attempt(tmp_path) == 5
    assert merge_exits(tmp_path, 4).code == 75


def test_every_kind_of_ending_has_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> int:
        def run(state: TrainState) -> None:
            state.step = 7
            raise error

        return leave(run, run_dir=tmp_path, ranks=Ranks(), attempt=lambda: 2)

    assert raising(ConfigError("optim.lr: too large")) == 78
    assert raising(Requeue("checkpointed at step 7")) == 75
    assert raising(MemoryError()) == 71
    assert raising(RuntimeError("[../gloo] Connection closed by peer [127.0.0.1]:1")) == 76
    assert "Traceback" not in capsys.readouterr().err
    assert raising(ZeroDivisionError("a defect")) == 70
    assert "Traceback" in capsys.readouterr().err
    assert json.loads((tmp_path / "exit.json").read_text())["step"] == 7


def test_named_tells_failures_from_defects() -> None:
    assert isinstance(named(RuntimeError("Connection reset by peer")), DistributedFailure)
    assert isinstance(named(MemoryError()), OutOfMemory)
    assert named(RuntimeError("shape mismatch")) is None
