"""Tune a model on a prepared corpus, on as many processes as torchrun starts (without torchrun: one).

Continues from the last good checkpoint in run_dir if there is one; leaves metrics, checkpoints and a report there.
"""

import os
import sys
import time
from pathlib import Path

from conf.compose import config_from_argv
from conf.disk.folders import own_local_folder, own_run_dir, temporary_root
from conf.errors import CorralError, leave_with_code
from train.process.allocator import grow_segments
from train.process.faultpoint import arm
from train.watchdog.heartbeat import heart

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""torch's own place for compiled code, which it runs, is one that every user of the machine can make first."""


def main() -> int:
    try:
        cfg, _ = config_from_argv(sys.argv[1:], command="torchrun --nproc-per-node=N -m train")
        arm(os.environ)
        with own_run_dir(Path(cfg.run_dir)):  # before any rank writes there
            pass
        if cfg.compute.kernels == "compile" and COMPILED not in os.environ:
            os.environ[COMPILED] = str(own_local_folder(temporary_root() / "inductor", "compute.kernels"))
    except CorralError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        time.sleep(3)  # torchrun ends the group with the first that leaves: the sentence is rank 0's, said once
        return error.code
    grow_segments(os.environ)
    heart.begin(cfg.run_dir, cfg.watchdog.seconds)
    from train.main import start
    from train.ranks.group import end_process  # torch only now: a typo is told within a second

    code = start(cfg, sys.argv[1:])
    heart.ended(code)
    return end_process(code)


if __name__ == "__main__":
    leave_with_code(main)
