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

from conf.durable import commit
from conf.errors import BadData, OutOfMemory
from data_prep.advice.reasons import advice
from data_prep.blocks.process import BLOCK_ROWS, Block, Job, block_file, process, read_outcome
from data_prep.blocks.progress import Progress
from data_prep.rows import raw
from data_prep.rows.conversation import Rejected, prompt_key
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, apply
from data_prep.samples import exemplars, styles

Run = Callable[[Job, Block], "Future[int]"]
AHEAD = 2
"""Blocks in flight per process: enough to keep it busy, few enough to bound memory."""


@contextmanager
def workers(count: int) -> Iterator[tuple[Run, int]]:
    """(function that runs a block, most blocks in flight).

    With one process the blocks run in this process, with the tokenizer's own threads.
    """
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
    """The first thing that a preparation process does."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End with the parent: a killed parent closes no queue, and its processes would wait for a block for ever."""
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
    """Rows of the files that ``select`` does not choose."""


def process_source(
    job: Job, limit: int | None, run: tuple[Run, int], progress: Progress, *, stop_at_bad_row: bool
) -> Whole:
    """Make all blocks of a source. ``limit``: how many of its first records are used; None for all."""
    mark = Path(job.folder) / "whole.json"
    if mark.is_file():
        progress.file_done(sum(raw.size(name) for name in job.paths))
        return Whole(**json.loads(mark.read_text(encoding="utf-8")))
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    gather_exemplars(job, limit)
    submit, most = run
    flying: deque[tuple[int, Block, Future[int] | None]] = deque()
    whole = Whole()

    def land() -> None:
        index, block, future = flying.popleft()
        _wait(future, job)
        progress.advance(job.source, len(block.records), block.records[-1].position)
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
    """Write the pools of a few-shot source, unless they are there: one more reading of its files."""
    render = job.stages.render
    if render.style is None or not render.few_shot or Path(render.exemplars).is_file():
        return
    pool, split = exemplars.Pool(render.style.seed), job.stages.split
    spoilt: set[int] = set()  # prompts of the held-out files, which are read first
    for record in records_of(job, limit):
        try:
            # Asked before the record is read: once the pool is full, it wants few records.
            held_out = record.file in split.files
            if not held_out and not pool.wants(job.stages.select.task_before_parsing(record), record.row):
                continue
            ((_, outcome),) = apply(job.stages.reading, [record], Counts())
            if isinstance(outcome, Rejected):
                continue
            styles.parts_of(outcome.conversation)
            if held_out:
                spoilt.add(prompt_key(outcome.conversation))
            elif not split.holds_out(outcome) and not (spoilt and prompt_key(outcome.conversation) in spoilt):
                pool.add(outcome.task, record.row, outcome.conversation)
        except Rejected:
            continue  # named and kept in quarantine when the blocks are made
    pool.write(Path(render.exemplars))


def _wait(future: Future[int] | None, job: Job) -> None:
    try:
        if future is not None:
            future.result()
    except BrokenProcessPool as error:
        raise OutOfMemory(
            f"a preparation process died while it worked on data.sources.{job.source}, most often because memory ran "
            "out; run again with a smaller data.num_proc; finished blocks are kept."
        ) from error


def bad_row(line: dict[str, Any]) -> BadData:
    """The error of data.on_bad_row=fail for the first row that was rejected."""
    detail = f" ({line['detail']})" if "detail" in line else ""
    return BadData(
        f"{line['file']}, row {line['row']} (data.sources.{line['source']}): {line['reason']}{detail}; "
        f"data.on_bad_row=fail stops at the first rejected row: {advice(line['reason'], line['source'])}; "
        "or set data.on_bad_row=quarantine."
    )


def _blocks(job: Job, limit: int | None, progress: Progress, whole: Whole) -> Iterator[Block]:
    records = _records(job, limit, whole, progress.file_done)
    index = 0
    while part := list(islice(records, BLOCK_ROWS)):
        yield Block(index, part)
        index += 1


def records_of(job: Job, limit: int | None = None) -> Iterator[Record]:
    """The source's records, in order of file and row; raises what raw.rows does. ``limit``: most of its training
    files."""
    return _records(job, limit, Whole(), lambda size: None)


def _records(job: Job, limit: int | None, whole: Whole, file_done: Callable[[int], None]) -> Iterator[Record]:
    held_out = job.stages.split.files
    yield from _of_files(job, [each for each in job.paths if each in held_out], whole, file_done)
    yield from islice(_of_files(job, [each for each in job.paths if each not in held_out], whole, file_done), limit)


def _of_files(job: Job, names: list[str], whole: Whole, file_done: Callable[[int], None]) -> Iterator[Record]:
    for name in names:
        for record, chosen in job.stages.select.rows(name, job.encoding):
            if chosen:
                yield record
            else:
                whole.left_out += 1
        file_done(raw.size(name))
