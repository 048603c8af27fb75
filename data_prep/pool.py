"""Blocks of a source through one or several processes, in bounded memory; finished blocks are not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from conf.errors import BadData, OutOfMemory
from data_prep import exemplars, raw, styles
from data_prep.block import (
    BLOCK_ROWS,
    Block,
    Counts,
    Job,
    block_file,
    conversation_of,
    is_held_out,
    process,
    read_outcome,
    task_of,
)
from data_prep.conversation import Rejected
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
    with ProcessPoolExecutor(count, context, initializer=_begin) as pool:
        try:
            yield (lambda job, block: pool.submit(process, job, block)), AHEAD * count
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """What a preparation process does first."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent closes no queue: its processes would wait for the next block for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_here(job: Job, block: Block) -> Future[int]:
    done: Future[int] = Future()
    done.set_result(process(job, block))
    return done


@dataclass
class Whole:
    """A source whose blocks are all made."""

    blocks: int = 0
    left_out: int = 0
    """Rows that ``select`` passed over."""


def process_source(
    job: Job, limit: int | None, run: tuple[Run, int], progress: Progress, *, stop_at_bad_row: bool
) -> Whole:
    """Make all blocks of a source. ``limit``: only the first so many of its rows."""
    mark = Path(job.folder) / "whole.json"
    if mark.is_file():
        progress.file_done(sum(raw.size(name) for name in job.paths))
        return Whole(**json.loads(mark.read_text()))
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    gather_exemplars(job, limit)
    submit, most = run
    flying: deque[tuple[int, Block, Future[int] | None]] = deque()
    whole = Whole()

    def land() -> None:
        index, block, future = flying.popleft()
        _wait(future, job)
        progress.advance(job.source, len(block.rows), block.rows[-1][1].position)
        if stop_at_bad_row and (bad := read_outcome(block_file(job.folder, index)).quarantine):
            raise bad_row(bad[0])

    for block in _blocks(job, limit, progress, whole):
        finished = block_file(job.folder, block.index).is_file()
        flying.append((block.index, block, None if finished else submit(job, block)))
        whole.blocks += 1
        if len(flying) >= most:
            land()
    while flying:
        land()
    commit(mark, json.dumps(vars(whole)).encode())
    return whole


def gather_exemplars(job: Job, limit: int | None) -> None:
    """Write the pools of a few-shot source, unless that was done: one more reading of its files."""
    if job.style is None or not job.style.few_shot or job.exemplars.is_file():
        return
    pool = exemplars.Pool(job.style.seed)
    for file, each in islice(rows_of(job), limit):
        try:
            task = task_of(job, file, each)
            if pool.wants(task, each.row):
                conversation = conversation_of(each.text, job, Counts())
                styles.parts_of(conversation)
                if not is_held_out(conversation, job.validation_fraction):
                    pool.add(task, each.row, conversation)
        except Rejected:
            continue  # named and kept in quarantine when the blocks are made
    pool.write(job.exemplars)


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


def _blocks(job: Job, limit: int | None, progress: Progress, whole: Whole) -> Iterator[Block]:
    rows = islice(_rows(job, whole, progress.file_done), limit)
    index = 0
    while part := list(islice(rows, BLOCK_ROWS)):
        yield Block(index, part)
        index += 1


def rows_of(job: Job) -> Iterator[tuple[int, RawRow]]:
    """(index of the file, row) of the source's own rows, in order."""
    return _rows(job, Whole(), lambda size: None)


def _rows(job: Job, whole: Whole, file_done: Callable[[int], None]) -> Iterator[tuple[int, RawRow]]:
    for file, name in enumerate(job.paths):
        for each, chosen in job.selection.rows(name):
            if chosen:
                yield file, each
            else:
                whole.left_out += 1
        file_done(raw.size(name))
