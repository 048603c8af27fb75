"""Real gloo processes inside plain pytest: ``run_distributed(fn, world)`` calls ``fn(ranks, *args)`` on every rank.

Ranks are forked from a server that has imported the libraries and runs nothing itself: four seconds of CPU time less
for each of them.
"""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PRELOADED = ("pytest", "hypothesis", "deepspeed", "transformers.models.llama.modeling_llama", "train.engine")


def _child(
    fn: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    out: str,
    environment: dict[str, str],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()  # the server has that of the first test
    os.environ.update(
        environment,
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    from train.engine import init_distributed
    from train.engine.engine import close_distributed
    from train.ranks.group import Ranks

    ranks = Ranks(rank=rank, world=world, local_rank=rank, local_world=world)
    try:
        ranks = init_distributed(ranks)
        result: tuple[bool, Any] = (True, fn(ranks, *args))
        close_distributed()
    except BaseException:
        result = (False, traceback.format_exc())
    Path(out, f"{rank}.pkl").write_bytes(pickle.dumps(result))
    os._exit(0 if result[0] else 1)


def run_distributed(fn: Callable[..., Any], world: int, *args: Any, timeout: float = 240.0) -> list[Any]:
    """The results of all ranks, in rank order. Raises AssertionError with the traceback of the first that failed."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory() as out:
        port = free_port()
        processes = [
            context.Process(target=_child, args=(fn, rank, world, port, out, dict(os.environ), args))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        for process in processes:
            if process.is_alive():
                process.kill()
        results = []
        for rank in range(world):
            file = Path(out, f"{rank}.pkl")
            assert file.is_file(), f"rank {rank} hung for {timeout} s or died without a result"
            ok, value = pickle.loads(file.read_bytes())
            assert ok, f"rank {rank}:\n{value}"
            results.append(value)
        return results
