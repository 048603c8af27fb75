"""A run's folder: claimed once, refused in one sentence, its exits reduced by cause."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from conf.durable import opened
from conf.errors import CannotCreate, ConfigError, HeldByAnother, Requeue
from conf.exits import (
    LAUNCHED,
    ExitRecord,
    begin_attempt,
    finished,
    mark_start,
    merge_exits,
    next_attempt,
    rank_file,
    reduce_exits,
    reserve,
    write_json,
    write_rank_exit,
)
from train.process.ending import Close, leave
from train.process.run_dir import append, batch_digest, claim
from train.ranks.group import Ranks
from train.state import TrainState


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    lock = claim(tmp_path / "run", 0)
    script = (
        f"from train.process.run_dir import claim; from pathlib import Path; claim(Path({str(tmp_path / 'run')!r}), 0)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "in use by process" in found.stderr
    lock.close()
    claim(tmp_path / "run", 0).close()


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreate, match=r"cannot be created.*set run_dir to another folder"):
        claim(tmp_path / "file" / "run", 0)


@pytest.mark.parametrize("before", ["", '{"a": 0}\n', '{"a": 0}\n{"a": 1', "{"])
def test_a_line_is_one_of_its_own_also_after_a_crash_in_the_last(tmp_path: Path, before: str) -> None:
    (tmp_path / "x").write_text(before)
    for number in (2, 3):
        append(tmp_path / "x", {"a": number})
    assert (tmp_path / "x").read_text().splitlines()[-2:] == ['{"a": 2}', '{"a": 3}']
    assert (tmp_path / "x").read_text().startswith(before)


def test_the_ledger_digest_depends_on_the_samples_and_not_on_their_order(tmp_path: Path) -> None:
    assert batch_digest([1, 2**64 - 1]) == batch_digest([1, 2**64 - 1])
    assert batch_digest([1, 2]) == batch_digest([2, 1])
    assert len({batch_digest(each) for each in ([1, 2], [1, 1, 2], [1], [1, 2, 3], [])}) == 5
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


def at(path: Path, rank: int, code: int, time: float, *, own: bool = False) -> None:
    write_rank_exit(path, rank, record(code), time_failed=time, own=own)


def test_the_first_failure_is_kept(tmp_path: Path) -> None:
    at(tmp_path, 0, 76, 5.0)  # it lost rank 1
    at(tmp_path, 1, 71, 4.0)
    at(tmp_path, 2, 70, 6.0)  # and said so in words that nobody knows
    assert reduce_exits(tmp_path, 0, 3).code == 71
    at(tmp_path, 1, 76, 4.0, own=True)  # its device failed: a restart elsewhere helps
    assert reduce_exits(tmp_path, 0, 3).code == 76
    at(tmp_path, 1, 70, 4.0)  # a defect that its peers noticed
    assert reduce_exits(tmp_path, 0, 3).code == 70
    (tmp_path / "exit" / "attempt-0-rank-1.json").unlink()  # killed: the 70 of rank 2 came of it
    assert reduce_exits(tmp_path, 0, 3).code == 76
    at(tmp_path, 1, 74, 7.0)  # what has a name is no consequence
    assert reduce_exits(tmp_path, 0, 3).code == 74


def end(path: Path, rank: int, code: int, time: float, *, own: bool = False) -> bool:
    """As a rank does that ends under plain torchrun."""
    first = write_rank_exit(path, rank, record(code, step=rank), time_failed=time, own=own)
    if first:
        merge_exits(path, 0, rank)
    return first


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "exit.json").read_text())
    return found


def test_the_first_rank_of_a_code_tells_and_one_failure_among_many_is_told(tmp_path: Path) -> None:
    assert [end(tmp_path, rank, 76, 5.0 + rank) for rank in range(300)] == [True] + [False] * 299
    assert told(tmp_path)["code"] == 76
    assert end(tmp_path, 300, 71, 4.0)
    assert end(tmp_path, 301, 70, 9.0)  # in words that nobody knows, after others had lost a peer
    assert end(tmp_path, 302, 75, 3.0)
    assert (told(tmp_path)["code"], told(tmp_path)["reason"]) == (71, "code 71")
    assert not end(tmp_path, 303, 71, 6.0)
    assert sorted(path.name for path in (tmp_path / "exit").glob("attempt-0-first-*")) == [
        f"attempt-0-first-{code}" for code in (70, 71, 75, 76)
    ]
    assert told(tmp_path) == asdict(reduce_exits(tmp_path, 0, 304)) | {"step": 302}


def test_without_a_launcher_the_same_cause_decides(tmp_path: Path) -> None:
    """The cases of ``test_the_first_failure_is_kept``, whichever disk is the fastest."""
    cases = [
        ([(0, 76, 5.0, False), (1, 71, 4.0, False), (2, 70, 6.0, False)], 71),
        ([(0, 76, 5.0, False), (1, 76, 4.0, True), (2, 70, 6.0, False)], 76),
        ([(0, 76, 5.0, False), (1, 70, 4.0, False), (2, 70, 6.0, False)], 70),
        ([(0, 76, 5.0, False), (2, 70, 6.0, False)], 76),
        ([(0, 76, 5.0, False), (1, 74, 7.0, False), (2, 70, 6.0, False)], 74),
        ([(0, 0, 1.0, False), (1, 0, 1.0, False), (2, 75, 2.0, False)], 75),
    ]
    for number, (ends, wanted) in enumerate(cases):
        for order in permutations(ends):
            folder = tmp_path / f"{number}-{'-'.join(str(each[0]) for each in order)}"
            for rank, code, when, own in order:
                end(folder, rank, code, when, own=own)
            assert told(folder)["code"] == wanted, (number, order)


def ending_at_once(folder: Path, rank: int, code: int, start: Any) -> None:
    start.wait()
    end(folder, rank, code, 5.0 - (code == 71))


def test_ranks_that_end_at_the_same_time_lose_no_cause(tmp_path: Path) -> None:
    """Eight processes with eight codes, which all write exit.json: the last one knows of the 71."""
    codes = [76, 75, 0, 71, 70, 76, 0, 75]
    context = multiprocessing.get_context("fork")
    for turn in range(20):
        start = context.Barrier(len(codes))
        folder = tmp_path / str(turn)
        ranks = [context.Process(target=ending_at_once, args=(folder, *each, start)) for each in enumerate(codes)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
        assert [process.exitcode for process in ranks] == [0] * len(codes)
        assert told(folder)["code"] == 71


def test_a_file_system_without_links_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Any, target_is_directory: bool = False) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    assert [end(tmp_path, *each) for each in ((0, 76, 5.0), (1, 71, 4.0), (2, 76, 6.0))] == [True] * 3
    assert told(tmp_path)["code"] == 71


def test_a_rank_without_room_for_its_link_tells_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Any, target_is_directory: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert end(tmp_path, 0, 76, 5.0)
    monkeypatch.setattr(Path, "symlink_to", full)
    assert end(tmp_path, 300, 71, 4.0)
    assert told(tmp_path)["code"] == 71


def test_attempts_count_up_even_if_nobody_wrote_an_exit(tmp_path: Path) -> None:
    assert next_attempt(tmp_path) == 0
    mark_start(tmp_path, 0)
    assert next_attempt(tmp_path) == 1
    write_rank_exit(tmp_path, 1, record(75, attempt=4))
    assert next_attempt(tmp_path) == 5
    assert merge_exits(tmp_path, 4).code == 75


def test_launchers_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: begin_attempt(tmp_path / "run"), range(40)))
    assert sorted(found) == list(range(40))


def test_every_kind_of_ending_has_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[tuple[int, bool]] = []

    def raising(error: BaseException) -> int:
        def run(state: TrainState, closing: list[Close]) -> None:
            state.step = 7
            closing.append(lambda code: order.append((code, (tmp_path / "exit/attempt-2-rank-0.json").exists())))
            closing.append(lambda code: 1 / 0)  # what cannot be closed does not hide the cause
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
    assert order == [(code, True) for code in (78, 75, 71, 76, 70)]  # the record comes first


def test_a_run_that_is_refused_leaves_the_files_of_the_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = '{"code": 0, "of": "the run that goes on"}'
    (tmp_path / "exit.json").write_text(mark)

    def refused(state: TrainState, closing: list[Close]) -> None:
        raise HeldByAnother("in use by process 7")

    reserve(tmp_path, 2, 0)
    reserve(tmp_path, 2, 1)
    held = sorted((tmp_path / "exit").iterdir())
    assert [path.name for path in held] == [".reserved-2-exit", ".reserved-2-rank-0", ".reserved-2-rank-1"]
    # Two that are started at once have the same number.
    assert leave(refused, run_dir=tmp_path, ranks=Ranks(), attempt=lambda: 2) == 73
    assert not rank_file(tmp_path, 2, 0).exists()
    monkeypatch.setenv(LAUNCHED, "3")  # a launcher gives each its own, and has to know how its attempt ended
    assert leave(refused, run_dir=tmp_path, ranks=Ranks(), attempt=lambda: 3) == 73
    assert json.loads(rank_file(tmp_path, 3, 0).read_text())["code"] == 73
    assert (tmp_path / "exit.json").read_text() == mark
    reserve(tmp_path, 3, 1)  # the first rank alone knows that they are refused
    assert all(path.exists() for path in held)
    reserve(tmp_path, 4, 0)  # the run was killed, and is started again
    assert [path.name for path in sorted((tmp_path / "exit").glob(".*"))] == [".reserved-4-exit", ".reserved-4-rank-0"]


def test_a_full_disk_still_takes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space was taken when the run began; nothing new can be created or grow."""
    reserve(tmp_path, 1, 0)

    def full(path: Path, mode: str, *args: Any) -> Any:
        if mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("conf.exits.opened", full)
    write_rank_exit(tmp_path, 0, ExitRecord(74, "x" * 5000, 9, "free space", 1))
    assert merge_exits(tmp_path, 1).code == 74
    monkeypatch.undo()
    found = json.loads((tmp_path / "exit.json").read_text())
    assert (found["code"], found["step"], len(found["reason"])) == (74, 9, 300)


def test_a_record_is_on_the_disk_before_it_has_its_name_and_the_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: named.append((tmp_path / "exit.json").exists()))
    write_json(tmp_path / "exit.json", {"code": 0})
    assert named == [False, True]


def test_an_exit_json_that_is_no_record_says_nothing(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"code": "0"}'):
        (tmp_path / "exit.json").write_text(content)
        assert not finished(tmp_path)
    (tmp_path / "exit.json").write_text('{"code": 0}')
    assert finished(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"step": "x" * 90}, {"code": None}, {"code": True}, {"reason": 3}, {"attempt": [0]}, {"hint": None}],
)
def test_a_rank_whose_record_is_of_another_shape_died_without_a_word(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    for rank in (0, 1):
        write_rank_exit(tmp_path, rank, ExitRecord(0, "done", 8, "", 0))
    path = tmp_path / "exit" / "attempt-0-rank-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    record = reduce_exits(tmp_path, 0, 2)
    assert (record.code, record.step) == (76, 8)
    assert "rank 0 died without a word" in record.reason


@pytest.mark.parametrize("when", ["soon", None, [], float("nan"), float("inf"), 10**400])
def test_a_time_that_is_none_comes_last(tmp_path: Path, when: object) -> None:
    write_rank_exit(tmp_path, 0, ExitRecord(71, "no memory", 8, "", 0))
    write_rank_exit(tmp_path, 1, ExitRecord(65, "bad rows", 8, "", 0))
    path = tmp_path / "exit" / "attempt-0-rank-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": when}))
    assert reduce_exits(tmp_path, 0, 2).code == 65
