"""Commands run by processes that are forked from one that has imported torch, so that a start costs tenths of a second.

``Warm`` starts ``python -m tests.faults.warm`` and sends it one ``Job`` at a time. For each it forks the ranks, which
call the same ``main`` as ``python -m MODULE ARGUMENTS`` under torchrun, with the variables that torchrun sets. It plays
torchrun only so far: it sends the signals of the job, waits, and reports when and how each rank ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from conf.errors import leave_with_code
from train.watchdog.board import SHARED_MEMORY

ROOT = Path(__file__).parents[2]
QUIET = {
    # A pool of threads does not survive a fork.
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1",
    # Ranks look for local rank 0 among the processes beside them; /proc shows of forked ones what this one began with.
    "LOCAL_RANK": "0",
}  # fmt: skip
IMPORTED = (
    "train.__main__", "train.main", "train.fingerprint", "data_prep.__main__", "data_prep.sources.alpaca",
    "train.attention.packed", "train.families.llama", "train.tuning.full", "train.tuning.lora",
    "peft", "transformers.models.llama.modeling_llama", "transformers.generation", "setuptools", "distutils.ccompiler",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.muon",
    "deepspeed.module_inject.auto_ep_layer", "deepspeed.ops.op_builder.all_ops",
    "torch._inductor.compile_fx", "networkx",
)  # fmt: skip
"""What a run imports sooner or later."""
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PORTS = range(18000, 32000)
"""Below those that Linux hands out, so nobody gets one by chance between its choice and its use."""
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


@dataclass(frozen=True)
class Job:
    module: str
    arguments: list[str]
    log: str
    """A file for the output of all ranks, which is appended to."""
    world: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    signals: list[tuple[float, list[int], int]] = field(default_factory=list)
    """(seconds, ranks, number of the signal). The seconds begin with the start if all ranks are meant, else when all
    have come to their watchdog: before that, torchrun ends the others in their imports, and forked ranks have none."""
    agent: bool = False
    """End the other ranks as torchrun does once one fails: SIGTERM, and SIGKILL after 30 s."""
    limit: float = 120.0
    """Seconds; then all is killed, and the job counts as hung."""


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    """Of every rank; -N: ended by signal N."""
    times: list[float]
    """Seconds from the start until each rank had ended."""
    hung: bool
    began: float
    """In seconds since 1970."""
    sent: list[float]
    """Seconds from the start until each signal of the job that still met a rank."""
    output: str


class Warm:
    """The client: a context manager around the warm process."""

    def __enter__(self) -> Warm:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT, env={**os.environ, **QUIET}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._answer(180.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, job: Job) -> Ended:
        assert self._process.stdin is not None
        log = Path(job.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        before = log.stat().st_size if log.exists() else 0
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        answer = self._answer(job.limit + 60)
        with log.open("rb") as stream:
            stream.seek(before)
            output = stream.read().decode("utf-8", "replace")
        return Ended(answer["codes"], answer["times"], answer["hung"], answer["began"], answer["sent"], output)

    def call(self, module: str, *arguments: str, log: Path, limit: float = 120.0) -> tuple[int, str]:
        """Exit code and output of one process."""
        ended = self.run(Job(module, list(arguments), str(log), limit=limit))
        return ended.codes[0], ended.output

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit)
        line = self._process.stdout.readline() if ready else ""
        assert line, f"the warm process {'ended' if ready else f'did not answer for {limit} s'}"
        return dict(json.loads(line))


def serve() -> None:
    """Answer each job on stdin with a line on stdout, until stdin ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(played(Job(**json.loads(line)))) + "\n")


def played(job: Job) -> dict[str, Any]:
    """Fork the ranks of ``job``, send its signals, and wait for all."""
    sys.stdout.flush()
    group = Group(job)
    try:
        while len(group.ended) < job.world:
            passed = time.monotonic() - group.began
            group.reap(passed)
            group.signal(passed)
            time.sleep(0.01)
    finally:
        group.send([*group.pids], signal.SIGKILL)
    codes, times = zip(*(group.ended[rank] for rank in range(job.world)), strict=True)
    return {"codes": codes, "times": times, "hung": group.hung, "began": group.since_1970, "sent": group.sent}


class Group:
    """The forked ranks of a job."""

    def __init__(self, job: Job) -> None:
        self.job, port = job, free_port()
        self.began, self.since_1970 = time.monotonic(), time.time()
        self.pids = {rank: os.fork() or _rank(job, rank, port) for rank in range(job.world)}
        """Of the ranks that have not ended."""
        self.ended: dict[int, tuple[int, float]] = {}
        """Code and time."""
        self.sent: list[float] = []
        self.hung = False
        self._pending = sorted(job.signals)
        self._torchrun: list[tuple[float, int]] = []
        """When torchrun will send which signal to all that are left."""
        self._board_seen = False
        self._came: float | None = None

    def reap(self, passed: float) -> None:
        for rank, pid in [*self.pids.items()]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self.pids[rank]
                code = os.waitstatus_to_exitcode(status)
                if self.job.agent and code and not any(other for other, _ in self.ended.values()):
                    self._torchrun = [(passed + 0.1, signal.SIGTERM), (passed + 30.0, signal.SIGKILL)]
                self.ended[rank] = code, passed

    def signal(self, passed: float) -> None:
        """Send what is due."""
        came = self._time_of_coming(passed)
        for each in [*self._pending]:
            after, ranks, number = each
            since = 0.0 if len(ranks) == self.job.world else came
            if since is not None and passed - since >= after:
                self._pending.remove(each)
                self.sent += [passed] if self.send(ranks, number) else []
        while self._torchrun and passed >= self._torchrun[0][0]:
            self.send([*self.pids], self._torchrun.pop(0)[1])
        if passed > self.job.limit and not self.hung:
            self.hung = True
            self.send([*self.pids], signal.SIGKILL)

    def _time_of_coming(self, passed: float) -> float | None:
        """When all ranks had come to their watchdog, which then takes away the name of its shared memory."""
        board = any(SHARED_MEMORY.glob(f"corral-{os.getpid()}-*"))
        if self._came is None and self._board_seen and not board:
            self._came = passed
        self._board_seen |= board
        return self._came

    def send(self, ranks: Iterable[int], number: int) -> int:
        """To how many of ``ranks`` it was sent."""
        pids = [self.pids[rank] for rank in ranks if rank in self.pids]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)


def _rank(job: Job, rank: int, port: int) -> NoReturn:
    """Be rank ``rank`` of the job. This process is a fork."""
    code = 70
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        os.setsid()
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(number, target)
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        if job.world > 1:
            values = (rank, job.world, rank, job.world, "127.0.0.1", port)
            os.environ.update({name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True)})
        os.environ.update(job.variables)
        sys.argv = [job.module, *job.arguments]
        package = (ROOT / job.module.replace(".", "/")).is_dir()
        leave_with_code(importlib.import_module(f"{job.module}.__main__" if package else job.module).main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


if __name__ == "__main__":
    serve()
