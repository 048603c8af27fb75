"""Tune a model on a prepared corpus, on as many processes as torchrun starts (without torchrun: one).

Continues from the last good checkpoint in run_dir if there is one; leaves metrics, checkpoints and a report there.
"""

import os
import sys
import time

from conf.compose import config_from_argv
from conf.errors import CorralError, leave_with_code


def main() -> int:
    try:
        cfg, _ = config_from_argv(sys.argv[1:], command="torchrun --nproc-per-node=N -m train")
    except CorralError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        time.sleep(3)  # torchrun ends the group with the first that leaves: the sentence is rank 0's, said once
        return error.code
    from train.distributed import end_process  # torch only now: a typo is told within a second
    from train.main import start

    return end_process(start(cfg, sys.argv[1:]))


if __name__ == "__main__":
    leave_with_code(main)
