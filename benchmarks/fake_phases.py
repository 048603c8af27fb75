"""What the ranks of a fake cluster do, phase by phase, without a model: Corral's own functions on made-up sizes."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.fake_ranks import LOCAL_WORLD, FakeGroup, Spent, spending, watched
from benchmarks.made import ALPACA, mixture
from benchmarks.scale import write_corpus
from conf.compose import compose, save_config
from conf.exits import ExitRecord, mark_start, merge_exits, write_rank_exit
from conf.schema import DataConfig, RunConfig, SourceConfig, StopConfig
from data_prep.corpus.prepared import open_at
from data_prep.stream.steps import most_samples
from data_prep.stream.stream import GlobalStep, Stream, rank_rows
from launch.restarts import settle
from train.checkpoint.commit import sweep
from train.checkpoint.resume import find_start, was_finished
from train.engine.engine import StepOutcome
from train.families import known_model
from train.loop import training_steps
from train.objectives.types import Sums
from train.process.run_dir import claim
from train.ranks.group import Ranks
from train.ranks.step import Signs
from train.recording import record
from train.state import TrainState
from train.tracking.device import Sensors, Straggler
from train.tracking.metrics import count
from train.tracking.tracker import JsonlTracker, NullTracker

MODEL = "meta-llama/Llama-3.1-8B"
SEQ_LEN = 2048
CORPUS_ROWS = 52_002
"""Of the corpus that a start opens: as many as Alpaca's."""


def global_size(world: int) -> int:
    """Rows of a step: 512, and more where there are more ranks than rows, as in the predictions of docs/scaling.md."""
    return max(512, world)


def config(run_dir: Path) -> RunConfig:
    return compose(["experiment=alpaca_llama3_8b_full", f"run_dir={run_dir}", "tracker.wandb=disabled"])


def start_up(folder: Path, world: int, *, trace: bool = False) -> dict[int, Spent]:
    """Corpus, settings, attempt and stream of a fresh start, on the watched ranks, which need no other rank's value."""
    corpus, run_dir = folder / "corpus", folder / "start"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        write_corpus(corpus, CORPUS_ROWS)
    data = DataConfig(
        sources={name: SourceConfig(format="alpaca", path="x") for name in ("a", "b", "c")},
        stop=StopConfig(epochs=1.0),
        seq_len=SEQ_LEN,
        share_prefix=False,
    )
    cfg = replace(config(run_dir), data=data)

    def body(ranks: Ranks) -> int:
        lock = claim(run_dir, 0) if ranks.is_main else None
        opened = open_at(str(corpus), None, verify="sizes")
        find_start(cfg, run_dir, ranks)
        ranks.broadcast(was_finished(run_dir) if ranks.is_main else False)
        if ranks.is_main:
            mark_start(run_dir, 0)
            sweep(run_dir)
            save_config(cfg, run_dir / "run.yaml")
        stream = Stream(opened.split("train"), data, seed=0, global_size=global_size(world))
        if lock is not None:
            lock.close()
        return stream.total_steps()

    group = FakeGroup[int](world, driven=watched(world), trace=trace)
    assert len(set(group.run(body).values())) == 1
    return group.spent


def stream_of(world: int, *, rows: int) -> Stream:
    """Of samples as long as Alpaca's, without tokens, for as many steps as are asked for."""
    splits, data = mixture(ALPACA, rows=rows, seq_len=SEQ_LEN)
    return Stream(splits, replace(data, stop=StopConfig(epochs=1000.0)), seed=0, global_size=global_size(world))


@dataclass(frozen=True)
class Planned:
    steps: list[GlobalStep]
    seconds: float
    """CPU time of planning one step, the same on every rank."""
    waited: float
    """What a step waits for its plan, if the plan was begun when a device took up the step before: a median."""
    handed: int
    """Bytes of a step's plan, if one rank of a node made it and handed it to the others."""


DEVICE_SECONDS = 0.25
"""What the device of a played step takes: 2,048 tokens per rank of an 8B model take about as long on an H100."""


def planning(world: int, *, rows: int, steps: int = 3) -> Planned:
    stream = stream_of(world, rows=rows)
    began = time.process_time()
    made = list(islice(stream, steps))
    seconds, waits = (time.process_time() - began) / len(made), list[float]()
    for _ in range(steps):
        stream.look_ahead()
        time.sleep(DEVICE_SECONDS)  # as the loop waits for a device: without the GIL
        began = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - began)
    return Planned(made, seconds, statistics.median(waits), len(pickle.dumps(made[-1])))


@dataclass(frozen=True)
class Stepped:
    seconds: float
    """CPU time of a step without the model's work, the stream's and the collective: a median of ten steps."""
    collective: float
    """CPU time of the collective as torch's fake backend plays it: a copy per rank, which on GPUs is the device's."""
    gathered: int
    """Bytes that the collective of a step brings to a rank."""
    opens: float
    """Files opened per step."""


class _NoCompute:
    """An engine, an objective, a stream and a feed in one: no model, steps that are planned, rows without tokens."""

    def __init__(self, ranks: Ranks, steps: Sequence[GlobalStep]) -> None:
        self.ranks, self.module = ranks, torch.nn.Identity()
        self.loss = torch.tensor(2.0)
        self._steps, self._next = steps, 0
        self._batches = {step.index: self._batch(step) for step in steps}

    def __next__(self) -> GlobalStep:
        self._next += 1
        return self._steps[self._next % len(self._steps)]

    def look_ahead(self) -> None:
        pass

    def _batch(self, step: GlobalStep) -> Any:
        rows = rank_rows(step, self.ranks.reader, self.ranks.readers)
        return SimpleNamespace(uids=tuple(row for packed in rows for _, row in packed.samples), targets=1)

    def denominator(self, step: GlobalStep) -> float:
        return float(step.targets)

    def batches(self, step: GlobalStep) -> Iterator[Any]:
        yield self._batches[step.index]

    def most_samples(self, step: GlobalStep) -> int:
        return most_samples(step, self.ranks.readers)

    def micro_batches(self, step: GlobalStep) -> int:
        return 1

    def sums(self, module: torch.nn.Module, batch: Any) -> Sums:
        return Sums(self.loss, {"loss": self.loss})

    def accumulate(self, share: torch.Tensor, *, last: bool) -> None:
        pass

    def step(self, lr: float, accept: Callable[[float], bool]) -> StepOutcome:
        return StepOutcome(1.0, skipped=False)


def stepping(folder: Path, world: int, rank: int, planned: Sequence[GlobalStep], *, steps: int = 200) -> Stepped:
    """The training loop and the records of ``rank``, with torch's fake backend, which copies but sends nothing."""
    run_dir = folder / f"steps-{rank}"
    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = config(run_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    tracker = JsonlTracker(run_dir) if rank == 0 else NullTracker()
    try:
        ranks = Ranks(rank=rank, world=world, local_rank=rank % LOCAL_WORLD, local_world=LOCAL_WORLD)
        parts: Any = _NoCompute(ranks, planned)
        run: Any = SimpleNamespace(
            cfg=replace(cfg, tracker=replace(cfg.tracker, log_every=1)),
            ranks=ranks,
            run_dir=run_dir,
            state=TrainState(),
            stream=SimpleNamespace(names=("alpaca",)),
            model_config=known_model(MODEL),
            tracker=tracker,
            total_steps=10**9,
            straggler=Straggler(["host"] * world),
        )
        sensors = Sensors(torch.device("cpu"))
        reports = training_steps(
            parts,
            parts,
            parts,
            parts,
            lr_at=lambda step: 1e-5,
            says=lambda busy: (Signs(), sensors.read(busy)),
        )
        taken: list[float] = []
        gathers: list[tuple[int, float]] = []

        def step() -> None:
            began = time.process_time()
            report = next(reports)
            count(run.state, report, run.stream.names)
            record(run, report)
            taken.append(time.process_time() - began - gathers[-1][1])

        with watching_gather(gathers):
            step()  # the first one imports
            with spending() as spent:
                for _ in range(steps):
                    step()
        assert len(gathers) == steps + 1, "a step has one collective"
    finally:
        tracker.close(0)
        dist.destroy_process_group()
        torch.set_num_threads(threads)
    sizes, seconds = zip(*gathers, strict=True)
    return Stepped(_undisturbed(taken), _undisturbed(seconds), max(sizes), spent.opens / steps)


def _undisturbed(seconds: Sequence[float], block: int = 10) -> float:
    """The median of the best block of consecutive steps: what other processes do to the caches comes in bursts."""
    blocks = [seconds[first : first + block] for first in range(0, len(seconds) - block + 1, block)]
    return min(map(statistics.median, blocks))


@contextmanager
def watching_gather(gathers: list[tuple[int, float]]) -> Iterator[None]:
    """Note bytes and CPU seconds of every gather of tensors in the default group; any other collective is an error."""
    gather = dist.all_gather_into_tensor

    def noted(output: torch.Tensor, own: torch.Tensor) -> None:
        began = time.process_time()
        gather(output, own)
        gathers.append((output.nbytes, time.process_time() - began))

    refused = {name: mock.Mock(side_effect=AssertionError(name)) for name in ("all_reduce", "broadcast", "barrier")}
    with mock.patch.multiple(dist, all_gather_into_tensor=noted, **refused):
        yield


@dataclass(frozen=True)
class Ended:
    ranks: dict[int, Spent]
    """Of a run that is asked to stop: every rank writes its record, and exit.json where it is due."""
    alone: Spent
    """Of a rank without memory, when all others have said that they lost it."""
    settling: Spent
    """The launcher, after the attempt."""


def ending(folder: Path, world: int) -> Ended:
    """How all ranks end that are asked to stop, how one ends that fails alone, and what the launcher does then."""
    stopped, failed, lone = folder / "stopped", folder / "failed", world // 2 + 1

    def end(run_dir: Path, rank: int, code: int) -> None:
        if write_rank_exit(run_dir, rank, ExitRecord(code, f"played {code}", 7, "start again", 0)):
            merge_exits(run_dir, 0, rank)

    group = FakeGroup[None](world)
    group.run(lambda ranks: end(stopped, ranks.rank, 75))
    FakeGroup[None](world).run(lambda ranks: None if ranks.rank == lone else end(failed, ranks.rank, 76))
    with spending() as alone:
        end(failed, lone, 71)
    assert json.loads((failed / "exit.json").read_text(encoding="utf-8"))["code"] == 71
    with spending() as settling:
        settle(stopped, attempt=0, first=0, world=world, max_restarts=3)
    return Ended({rank: group.spent[rank] for rank in watched(world)}, alone, settling)
