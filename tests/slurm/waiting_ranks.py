"""One of two ranks that exchange objects, with SECONDS for a silent link: says when it waits, and how that ended."""

import sys
import time
from functools import partial
from unittest import mock

from conf.errors import DistributedFailure
from train.engine import init_distributed
from train.process.causes import named
from train.ranks import group
from train.ranks.connections import end_silent_connections
from train.ranks.group import Ranks, end_process, ranks_from_environment


def main() -> None:
    given = ranks_from_environment()
    with mock.patch.object(group, "end_silent_connections", partial(end_silent_connections, int(sys.argv[1]))):
        ranks = init_distributed(Ranks(given.rank, given.world, local_world=1))
    print("waits", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    try:
        time.sleep(ranks.rank)  # the first one has sent before the link's end is told to it, the second waits
        ranks.gather("what a rank knows")
        print("nothing was lost", flush=True)
    except RuntimeError as error:
        lost = isinstance(named(error), DistributedFailure)
        print(f"{'lost a peer' if lost else error} after {time.monotonic() - began:.1f} s", flush=True)
    end_process(0)


if __name__ == "__main__":
    main()
