"""Gradients of one global batch, computed in every way a run may cut it up, against plain torch.

The reference takes the samples one after another through the model, without packing, DeepSpeed or other ranks, and
divides by the number of supervised tokens. Every case is the production path: build, collate, loss, engine. ``verify``
prints the comparisons; the parity tests make many more.
"""

from __future__ import annotations

import contextlib
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
from data_prep.shards import Split, open_corpus
from data_prep.stream import GlobalStep, PackedRow, Stream, rank_rows
from train.batch import collate
from train.distributed import Ranks, end_process
from train.engine import Engine, deepspeed_settings, init_distributed, loading_context
from train.engine.engine import close_distributed
from train.loop import micro_batches
from train.loss import loss_sums
from train.model import build
from train.plan import accumulation_steps
from train.sequence_parallel import in_teams, share
from train.tuning import trainable

Gradients = dict[str, torch.Tensor]
TIMEOUT_S = 600.0
REFUSAL = "refusal.pickle"
"""Where a process leaves the sentence that the user should read."""


@dataclass(frozen=True)
class Case:
    label: str
    world: int
    micro_size: int
    pack: Literal["exact", "none"]
    adds: str = ""
    """What this case has that those before it have not: where it is the first to differ, that is what is wrong."""
    slices: int = 1
    """Ranks that share a row (compute.sequence_parallel)."""


@dataclass(frozen=True)
class Proof:
    """What every process needs to compute the same thing."""

    cfg: RunConfig
    """The user's, with a shrunken model and its own run_dir."""
    corpus: Path
    pad_id: int
    eos_id: int
    vocab_size: int
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the cases are computed; a rank each on CUDA."""

    def in_fp32(self) -> Proof:
        """The same on the CPU in fp32: what the cases are compared with."""
        return replace(self, cfg=replace(self.cfg, model=replace(self.cfg.model, dtype="fp32")), device="cpu")

    def plan(self, pack: str) -> tuple[list[Split], GlobalStep]:
        """The first global batch; with ``pack`` none, the same samples with one per row."""
        splits = open_corpus(self.corpus, verify="sizes").split("train")
        size = self.cfg.batch.global_size
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


def reference_gradients(proof: Proof) -> Gradients:
    """Plain torch in the proof's dtype, sample by sample; fp32 tensors on the CPU."""
    device = torch.device(proof.device)
    cfg = replace(proof.cfg, attention=AttentionConfig(backend="sdpa"), data=replace(proof.cfg.data, pack="none"))
    cfg = replace(cfg, compute=replace(cfg.compute, sequence_parallel=1))
    built = build(
        cfg,
        Ranks(device=device),
        vocab_size=proof.vocab_size,
        pad_id=proof.pad_id,
        eos_id=proof.eos_id,
        init_context=contextlib.nullcontext(),
    )
    model = built.model.to(device)
    splits, step = proof.plan("none")
    for row in step.rows:
        batch = collate([row], splits, layout="padded", pad_id=proof.pad_id, device=device)
        sums = loss_sums(model, batch, targets_only=False, loss=cfg.loss)
        (sums.objective / step.targets).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.float().cpu() for name, p in trainable(model).items() if p.grad is not None}


def case_gradients(proof: Proof, case: Case, ranks: Ranks) -> tuple[Gradients, int]:
    """Gradients of the case as the engine holds them before its step, and the targets that all ranks really fed."""
    splits, step = proof.plan(case.pack)
    batch_size = replace(proof.cfg.batch, global_size=len(step.rows), micro_size=case.micro_size)
    compute = replace(proof.cfg.compute, sequence_parallel=case.slices)
    cfg = replace(proof.cfg, batch=batch_size, data=replace(proof.cfg.data, pack=case.pack), compute=compute)
    ranks = in_teams(ranks, case.slices)
    settings = deepspeed_settings(
        model=cfg.model,
        zero=cfg.zero,
        optim=cfg.optim,
        batch=cfg.batch,
        world=ranks.world,
        on_cpu=ranks.device.type == "cpu",
        slices=ranks.slices,
    )
    built = build(
        cfg,
        ranks,
        vocab_size=proof.vocab_size,
        pad_id=proof.pad_id,
        eos_id=proof.eos_id,
        init_context=loading_context(settings),
    )
    engine = Engine(built.model, trainable(built.model), settings=settings, optim=cfg.optim, zero=cfg.zero, ranks=ranks)
    count, fed = accumulation_steps(cfg.batch, ranks.readers), 0
    groups = micro_batches(rank_rows(step, ranks.reader, ranks.readers), case.micro_size, count)
    for index, rows in enumerate(groups):
        whole = collate(rows, splits, layout=built.attention.layout, pad_id=proof.pad_id, device=ranks.device)
        batch = share(whole, ranks)
        sums = loss_sums(engine.module, batch, targets_only=cfg.compute.targets_only_head, loss=cfg.loss)
        engine.accumulate(sums.objective / step.targets, last=index == count - 1)
        fed += batch.targets
    return engine.gradients(), int(ranks.sum([float(fed)])[0])


Job = tuple[Proof, Case]


def _worker(rank: int, world: int, port: int, jobs: Sequence[tuple[int, Job]], out: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    device = torch.device(jobs[0][1][0].device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    ranks = Ranks(rank=rank, world=world, local_rank=rank, local_world=world, device=device)
    init_distributed(ranks)
    try:
        for index, (proof, case) in jobs:
            found = case_gradients(proof, case, ranks)
            if rank == 0:
                torch.save(found, Path(out) / f"{index}.pt")
    except CorralError as refusal:
        Path(out, REFUSAL).write_bytes(pickle.dumps(refusal))
        end_process(refusal.code)
    close_distributed()
    end_process(0)


def run_cases(jobs: Sequence[Job], folder: Path) -> list[tuple[Gradients, int]]:
    """Every case in real processes, one launch per number of ranks; the results in the order of ``jobs``.

    All proofs are for one kind of device. Raises DistributedFailure on a hang, and what refuses a case refuses here.
    """
    numbered = list(enumerate(jobs))
    for world in sorted({case.world for _, case in jobs}):
        _launch(world, [(index, job) for index, job in numbered if job[1].world == world], folder)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index, _ in numbered]


def _launch(world: int, jobs: Sequence[tuple[int, Job]], folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not fork: DeepSpeed and torch have threads by now.
    context = start_processes(  # type: ignore[no-untyped-call]
        _worker, args=(world, port, jobs, str(folder)), nprocs=world, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not context.join(timeout=5.0):  # true once all have ended
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise DistributedFailure(f"{world} ranks did not finish within {TIMEOUT_S:.0f} s; run it again")
    except ProcessExitedException as died:
        if (folder / REFUSAL).exists():
            raise pickle.loads((folder / REFUSAL).read_bytes()) from None
        raise DistributedFailure(f"{died}, before all comparisons were made; run it again") from None
