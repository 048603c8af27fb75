"""``torchrun ... -m tests.end_to_end.planted FAULT FILE ARGUMENTS...``: train, where rank 1 fails in its third step.

It writes the time at which it does to FILE.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from conf.compose import config_from_argv
from train import loop, main
from train.ranks.group import end_process

FAULTS: dict[str, Callable[[], BaseException]] = {
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "ecc": lambda: RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    "peer": lambda: dist.DistBackendError("NCCL communicator was aborted on rank 1."),
    "defect": lambda: ZeroDivisionError("a defect"),
    "disk": lambda: OSError(errno.EIO, "Input/output error", "/data/train.bin"),
}


def run(fault: str, file: Path, arguments: list[str]) -> None:
    right, steps = loop.accumulate, 0

    def wrong(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3 and os.environ["RANK"] == "1":
            file.write_text(repr(time.time()))
            raise FAULTS[fault]()
        return right(*args, **kwargs)

    loop.accumulate = wrong
    cfg, _ = config_from_argv(arguments, command="train")
    end_process(main.start(cfg, arguments))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
