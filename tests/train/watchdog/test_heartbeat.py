"""What a rank pays, and what it writes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from train.model import compiled
from train.watchdog import heartbeat
from train.watchdog.board import TIMES, Board, Phase, Place, Word, create, private_slot
from train.watchdog.heartbeat import Heart


def test_a_mark_costs_less_than_ten_microseconds() -> None:
    heart, best = Heart(), float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(10_000):
            heart.at(Place.COMPUTING)
        best = min(best, (time.perf_counter() - began) / 10_000)
    assert best < 10e-6, f"{best * 1e6:.2f} us"


def test_phases_and_positions() -> None:
    heart = Heart()
    words = heart._words
    heart.begin_step()
    assert words[Word.PHASE] == Phase.FIRST_STEP
    heart.end_step(1, 0.5)
    heart.begin_step()
    assert (words[Word.PHASE], words[Word.PLACE], words[Word.STEP]) == (Phase.STEP, Place.READING, 1)
    position, beats = words[Word.POSITION], words[Word.BEATS]
    heart.alive()
    heart.enter_alone(Phase.COMPILATION)
    assert (words[Word.POSITION], words[Word.BEATS]) == (position, beats + 2)
    heart.enter(Phase.EVALUATION)
    assert words[Word.POSITION] == position + 1
    heart.begin_step()
    assert words[Word.PHASE] == Phase.FIRST_STEP


def test_the_last_times_are_kept() -> None:
    slot = private_slot()
    assert slot.times == []
    for step in range(TIMES + 3):
        slot.add_time(float(step))
    assert sorted(slot.times) == [float(step) for step in range(3, TIMES + 3)]


def test_slots_do_not_overlap_and_stacks_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "board"
    create(path, 2, 3)
    ours, theirs = Board(path, 2), Board(path, 2)
    assert [slot.words[Word.ATTEMPT] for slot in theirs.slots] == [3, 3]
    for local_rank, board in enumerate((ours, theirs)):
        slot = board.slots[local_rank]
        slot.run_dir = Path("/runs") / ("long-ä" * 50 + str(local_rank))
        slot.words[Word.RANK] = local_rank
        for _ in range(TIMES):
            slot.add_time(local_rank + 1.0)
        os.write(board.stack_file(local_rank), f"stacks of {local_rank}\n".encode())
    for local_rank, slot in enumerate(theirs.slots):
        assert slot.run_dir == Path("/runs") / ("long-ä" * 50 + str(local_rank))
        assert slot.words[Word.RANK] == local_rank
        assert {*slot.times} == {local_rank + 1.0}
        assert theirs.stacks_of(local_rank) == f"stacks of {local_rank}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["board"]


def test_a_compilation_is_a_phase_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plus(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    block = Plus()
    compiled.compile_blocks([block])
    for expected in (Phase.COMPILATION, Phase.STEP):  # the second call finds it compiled
        heartbeat.heart.end_step(1, 0.1)
        block(torch.ones(3))
        assert heartbeat.heart._words[Word.PHASE] == expected
    torch._dynamo.reset()
