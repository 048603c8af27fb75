"""The start and the end of a rank, without a run between: what is closed, and by whom the process ends."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.compose import compose
from conf.errors import Requeue
from tests.end_to_end.commands import tiny_run
from train import main
from train.ranks import group
from train.ranks.group import Ranks


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (None, 0),
        (torch.OutOfMemoryError("CUDA out of memory."), 71),
        (Requeue("stopped"), 75),
        (ZeroDivisionError("a defect"), 70),
    ],
    ids=["success", "memory", "stopped", "defect"],
)
def test_only_a_success_closes_the_process_group(
    failure: BaseException | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under NCCL that is collective: after a failure it waits for ranks that are gone, until they are given up."""
    closed: list[str] = []

    def drained(*_: Any) -> None:
        if failure is not None:
            raise failure

    tracker = SimpleNamespace(close=lambda code: closed.append("tracker"))
    parts = SimpleNamespace(tracker=tracker, copier=None)
    for name, stand_in in {
        "open_prepared": lambda *_, **__: None,
        "init_distributed": lambda ranks, _: ranks,
        "bring_home": lambda *_: None,
        "assemble": lambda *_: parts,
        "announce": lambda *_: None,
        "drain": drained,
        "close_distributed": lambda: closed.append("group"),
    }.items():
        monkeypatch.setattr(main, name, stand_in)
    assert main.start(compose(tiny_run(tmp_path, "run")), []) == code
    assert closed == (["tracker"] if failure else ["tracker", "group"])


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_rank_of_a_node_hashes_the_corpus_and_looks_for_the_stop_file(
    local_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every rank knows where the flight recorder writes, and leaves its memory behind when it runs out."""
    asked: dict[str, Any] = {}

    class Stop(main.StopRequest):
        def __init__(self, *, polls: bool = True, **more: Any) -> None:
            asked["polls"] = polls
            super().__init__(polls=polls, **more)

    def opened(*_: Any, verify: str, **__: Any) -> None:
        asked["verify"] = verify

    def grouped(ranks: Ranks, dumps: Path) -> Ranks:
        asked["dumps"] = dumps
        return ranks

    def witness(*_: Any) -> Any:
        return lambda code: asked.update(witness=code)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    own = Ranks(rank=local_rank, local_rank=local_rank)  # of a world of one, which waits for nobody
    monkeypatch.setattr(main, "ranks_from_environment", lambda: own)
    for name, stand_in in {
        "StopRequest": Stop,
        "open_prepared": opened,
        "init_distributed": grouped,
        "Witness": witness,
        "in_teams": full,
        "close_distributed": lambda: None,
    }.items():
        monkeypatch.setattr(main, name, stand_in)
    assert main.start(compose(tiny_run(tmp_path, "run")), []) == 71
    assert asked == {
        "polls": local_rank == 0,
        "verify": "hashes" if local_rank == 0 else "sizes",
        "dumps": tmp_path / "run" / "logs" / "flight-0-rank-",
        "witness": 71,
    }


def test_chosen_steps_are_traced_on_the_first_rank_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(tiny_run(tmp_path, "run", "debug=profile"))
    traced: list[tuple[Any, ...]] = []
    monkeypatch.setattr(main, "training_steps", lambda *_, **__: iter(()))
    monkeypatch.setattr(main.Profiler, "watch", lambda self, reports, after: traced.append((self.steps, after)))
    for rank in (0, 1):
        tracker = SimpleNamespace(note=print)
        state, device = SimpleNamespace(step=2), torch.device("cpu")
        ranks = SimpleNamespace(is_main=rank == 0, device=device)
        run: Any = SimpleNamespace(cfg=cfg, ranks=ranks, run_dir=tmp_path, tracker=tracker, state=state, total_steps=6)
        run.engine = run.stream = run.feed = run.objective = None
        stand_in: Any = SimpleNamespace(accepts=None)
        main.steps(run, stand_in, stand_in, stand_in)
    assert traced == [([4, 5, 6], 2)]


def test_the_process_ends_without_the_interpreters_own_teardown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of gloo abort it in rare runs, and torchrun then takes a run that has finished for a failed one."""

    class Left(BaseException):
        """No failure, which the command would end with a code of its own."""

    def end(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(main, "start", lambda *_: 3)
    monkeypatch.setattr(group, "end_process", end)
    monkeypatch.setattr("train.watchdog.heartbeat.heart.begin", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["train", "experiment=demo"])
    with pytest.raises(Left, match=r"^3$"):
        runpy.run_module("train", run_name="__main__")
