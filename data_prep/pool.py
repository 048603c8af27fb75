"""Blocks of a source through one or several processes, in bounded memory; finished blocks are not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from conf.errors import BadData, OutOfMemory
from data_prep import raw
from data_prep.block import BLOCK_ROWS, Block, Job, block_file, process, read_outcome
from data_prep.durable import commit
from data_prep.files import RawRow
from data_prep.progress import Progress

Run = Callable[[Job, Block], "Future[int]"]
AHEAD = 2
"""Blocks in flight per process: enough to keep it busy, few enough to bound memory."""


@contextmanager
def workers(count: int) -> Iterator[tuple[Run, int]]:
    """(a way to run a block, blocks that may be in flight). One process: here, with the tokenizer's own threads."""
    if count == 1:
        yield _run_here, 1
        return
    # spawn, not fork: the tokenizer's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_quiet_threads) as pool:
        try:
            yield (lambda job, block: pool.submit(process, job, block)), AHEAD * count
        finally:
            pool.shutdown(cancel_futures=True)


def _quiet_threads() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _run_here(job: Job, block: Block) -> Future[int]:
    done: Future[int] = Future()
    done.set_result(process(job, block))
    return done


def process_source(
    job: Job, limit: int | None, run: tuple[Run, int], progress: Progress, *, stop_at_bad_row: bool
) -> int:
    """Make all blocks of a source; returns their number. ``limit``: only the first so many rows."""
    whole = Path(job.folder) / "whole.json"
    if whole.is_file():
        progress.file_done(sum(raw.size(name) for name in job.paths))
        return int(json.loads(whole.read_text()))
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    submit, most = run
    flying: deque[tuple[int, Block, Future[int] | None]] = deque()
    count = 0

    def land() -> None:
        index, block, future = flying.popleft()
        _wait(future, job)
        progress.advance(job.source, len(block.rows), block.rows[-1][1].position)
        if stop_at_bad_row and (bad := read_outcome(block_file(job.folder, index)).quarantine):
            raise bad_row(bad[0])

    for block in _blocks(job, limit, progress):
        finished = block_file(job.folder, block.index).is_file()
        flying.append((block.index, block, None if finished else submit(job, block)))
        count = block.index + 1
        if len(flying) >= most:
            land()
    while flying:
        land()
    commit(whole, json.dumps(count).encode())
    return count


def _wait(future: Future[int] | None, job: Job) -> None:
    try:
        if future is not None:
            future.result()
    except BrokenProcessPool as error:
        raise OutOfMemory(
            f"a preparation process died at data.sources.{job.source} (most often: out of memory); "
            "run again with a smaller data.num_proc, finished blocks are kept."
        ) from error


def bad_row(line: dict[str, Any]) -> BadData:
    """The error of data.on_bad_row=fail for the first row that was rejected."""
    detail = f" ({line['detail']})" if "detail" in line else ""
    return BadData(
        f"{line['file']}, row {line['row']} (data.sources.{line['source']}): {line['reason']}{detail}; "
        "data.on_bad_row=fail stops here: mend the row, or set data.on_bad_row=quarantine."
    )


def _blocks(job: Job, limit: int | None, progress: Progress) -> Iterator[Block]:
    rows = islice(_rows(job, progress), limit)
    index = 0
    while part := list(islice(rows, BLOCK_ROWS)):
        yield Block(index, part)
        index += 1


def _rows(job: Job, progress: Progress) -> Iterator[tuple[int, RawRow]]:
    for file, name in enumerate(job.paths):
        for each in raw.rows(name):
            yield file, each
        progress.file_done(raw.size(name))
