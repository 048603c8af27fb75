"""Gradients of one global batch, computed in every way that a run may cut it up, and by plain torch.

The reference feeds the samples to the model one after another, without packing, DeepSpeed or other ranks, and divides
by the objective's denominator. Every case takes the production path: build, collate, objective, engine. ``verify``
prints the comparisons; the parity tests make many more.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from conf.errors import CorralError, DistributedFailure
from conf.schema import AttentionConfig, RunConfig
from data_prep.corpus.shards import Split, open_corpus
from data_prep.stream.stream import GlobalStep, PackedRow, Stream
from train.assembly import model_and_engine, objective_for
from train.batches.feed import Feed
from train.batches.slices import in_teams
from train.engine import init_distributed
from train.engine.engine import close_distributed
from train.loop import accumulate
from train.model.build import TokenIds, build
from train.model.compiled import eager
from train.objectives import Objective
from train.plan import number
from train.process.causes import causes_named
from train.ranks.group import Ranks, end_process
from train.tuning import trainable
from train.verify.watch import Record, watch

Gradients = dict[str, torch.Tensor]
TIMEOUT_S = 600.0
REFUSAL = "refusal.pickle"
"""The file in which a process leaves the error for the user."""


@dataclass(frozen=True)
class Case:
    label: str
    world: int
    micro_size: int
    pack: Literal["exact", "none"]
    adds: str = ""
    """The thing that this case has and earlier cases lack: it is wrong if this case is the first to differ."""
    slices: int = 1
    """Ranks that share a row (compute.sequence_parallel)."""


@dataclass(frozen=True)
class Proof:
    """Everything that a process needs to compute the reference and the cases."""

    cfg: RunConfig
    """The user's config with a shrunken model and another run_dir."""
    corpus: Path
    ids: TokenIds
    device: Literal["cpu", "cuda"] = "cpu"
    """The device that computes the cases; on CUDA, one device per rank."""

    def in_fp32(self) -> Proof:
        """The same proof on the CPU in fp32: the reference of the comparison."""
        return replace(self, cfg=replace(self.cfg, model=replace(self.cfg.model, dtype="fp32")), device="cpu")

    def plan(self, pack: str) -> tuple[list[Split], GlobalStep]:
        """The first global batch; with ``pack`` none, the same samples with one sample per row."""
        splits = open_corpus(self.corpus, verify="sizes").split("train")
        size = number(self.cfg.batch.global_size)
        stream = Stream(splits, self.cfg.data, seed=self.cfg.seed, global_size=size)
        step = next(stream)
        if pack == "none":
            alone = tuple(
                PackedRow(samples=(sample,), tokens=int(splits[stream.names[sample[0]]].lengths[sample[1]]))
                for row in step.rows
                for sample in row.samples
            )
            step = replace(step, rows=alone)
        return [splits[name] for name in stream.names], step


def reference_gradients(proof: Proof, *, double: bool = False) -> Gradients:
    """Gradients by plain torch, sample by sample, in the proof's dtype or in fp64; fp32 or fp64 tensors on the CPU."""
    return _reference(proof, double=double, watched=False)[0]


def reference_record(proof: Proof, *, double: bool = False) -> Record:
    """What modules take and give while plain torch computes ``reference_gradients``."""
    gradients, record = _reference(proof, double=double, watched=True)
    return replace(record, reduced=gradients)


def _reference(proof: Proof, *, double: bool, watched: bool) -> tuple[Gradients, Record]:
    device = torch.device(proof.device)
    cfg = replace(proof.cfg, attention=AttentionConfig(backend="sdpa"), data=replace(proof.cfg.data, pack="none"))
    cfg = replace(cfg, compute=replace(cfg.compute, sequence_parallel=1))
    cfg = replace(cfg, compute=replace(cfg.compute, targets_only_head=False))
    ranks = Ranks(device=device)
    objective = objective_for(cfg, ranks, proof.ids)
    model = build(cfg, ranks, proof.ids).model.to(device)
    model = model.double() if double else model
    objective, record = _watched(model, objective) if watched else (objective, Record())
    splits, step = proof.plan("none")
    feed = Feed(splits, "padded", proof.ids.pad_id, ranks)
    for row in step.rows:
        sums = objective.sums(model, feed.batch([row]))
        (sums.objective / objective.denominator(step)).backward()  # type: ignore[no-untyped-call]
    dtype = torch.float64 if double else torch.float32
    return {name: p.grad.to("cpu", dtype) for name, p in trainable(model).items() if p.grad is not None}, record


def _watched(model: torch.nn.Module, objective: Objective) -> tuple[Objective, Record]:
    watched = watch(model, objective)
    return watched, watched.record


def case_gradients(proof: Proof, case: Case, ranks: Ranks) -> tuple[Gradients, int]:
    """The gradients of the case in the engine before its step, and the number of targets that all ranks fed."""
    return _case(proof, case, ranks, watched=False)[:2]


def case_record(proof: Proof, case: Case, ranks: Ranks) -> Record:
    """What modules take and give on this rank while the case is computed, and the gradients; nothing is compiled."""
    with eager():
        gradients, _, record = _case(proof, case, ranks, watched=True)
    return replace(record, reduced=gradients)


def _case(proof: Proof, case: Case, ranks: Ranks, *, watched: bool) -> tuple[Gradients, int, Record]:
    splits, step = proof.plan(case.pack)
    batch_size = replace(proof.cfg.batch, global_size=len(step.rows), micro_size=case.micro_size)
    compute = replace(proof.cfg.compute, sequence_parallel=case.slices)
    cfg = replace(proof.cfg, batch=batch_size, data=replace(proof.cfg.data, pack=case.pack), compute=compute)
    ranks = in_teams(ranks, case.slices)
    built, engine = model_and_engine(cfg, ranks, proof.ids)
    objective = objective_for(cfg, ranks, proof.ids)
    objective, record = _watched(built.model, objective) if watched else (objective, Record())
    feed = Feed(splits, built.attention.layout, proof.ids.pad_id, ranks, case.micro_size)
    denominator = objective.denominator(step)
    done = accumulate(engine, objective, feed.batches(step), count=feed.micro_batches(step), denominator=denominator)
    record.divided_by = engine.divided_by
    return engine.gradients(), int(ranks.sum([float(done.targets)])[0]), record


Job = tuple[Proof, Case]


def _worker(rank: int, world: int, port: int, jobs: Sequence[tuple[int, Job]], out: str, watched: bool) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    device = torch.device(jobs[0][1][0].device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    ranks = init_distributed(Ranks(rank=rank, world=world, local_rank=rank, local_world=world, device=device))
    try:
        with causes_named():
            for index, (proof, case) in jobs:
                if watched:
                    torch.save(case_record(proof, case, ranks), Path(out) / f"record-{rank}.pt")
                    continue
                gradients = case_gradients(proof, case, ranks)
                if rank == 0:
                    torch.save(gradients, Path(out) / f"{index}.pt")
    except CorralError as refusal:
        if type(refusal) is not DistributedFailure:  # the peer that was lost tells why
            Path(out, REFUSAL).write_bytes(pickle.dumps(refusal))
        end_process(refusal.code)
    close_distributed()
    end_process(0)


def run_cases(jobs: Sequence[Job], folder: Path) -> list[tuple[Gradients, int]]:
    """Compute every case in real processes, one launch per number of ranks; return results in the order of ``jobs``.

    All proofs use one kind of device. Raises DistributedFailure on a hang, and the CorralError that a case raises.
    """
    numbered = list(enumerate(jobs))
    for world in sorted({case.world for _, case in jobs}):
        _launch(world, [(index, job) for index, job in numbered if job[1].world == world], folder)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index, _ in numbered]


def run_record(job: Job, folder: Path) -> list[Record]:
    """The records of all ranks of ``job``, computed in real processes like ``run_cases``."""
    world = job[1].world
    _launch(world, [(0, job)], folder, watched=True)
    return [torch.load(folder / f"record-{rank}.pt", weights_only=False) for rank in range(world)]


def _launch(world: int, jobs: Sequence[tuple[int, Job]], folder: Path, *, watched: bool = False) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not fork: DeepSpeed and torch have already started threads.
    context = start_processes(  # type: ignore[no-untyped-call]
        _worker, args=(world, port, jobs, str(folder), watched), nprocs=world, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not context.join(timeout=5.0):  # true once all have ended
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise DistributedFailure(
                    f"verify: {world} ranks did not finish within {TIMEOUT_S:.0f} s; run the command again"
                )
    except ProcessExitedException as died:
        if (folder / REFUSAL).exists():
            raise pickle.loads((folder / REFUSAL).read_bytes()) from None
        raise DistributedFailure(f"verify: {died} before all comparisons were made; run the command again") from None
