"""The exemplars of few-shot prompts: a pool of solved records per task, read once before the blocks are made.

A pool is a sample of the task's usable training rows: those with the smallest hash of (seed, task, row), no two with
the same prompt. It depends on the files alone, not on blocks or processes, and has at most ``POOL`` rows for the whole
source, or ``FEWEST`` per task where there are many tasks; that bounds the memory.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.durable import commit
from data_prep.rows.conversation import Conversation, Message, prompt_key
from data_prep.stream.permutation import key_of

POOL = 4096
FEWEST = 16

Pools = Mapping[str, tuple[Conversation, ...]]


class Pool:
    """The pools of a source, while its records are read."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._keys: dict[str, int] = {}
        self._kept: dict[str, list[tuple[int, int, Conversation]]] = {}
        """(-hash, prompt key, row) by task, as a heap: the largest hash first."""
        self._prompts: dict[str, set[int]] = {}

    def wants(self, task: str, row: int) -> bool:
        """Whether the pool would take this record, asked before the record is read: a full pool takes few."""
        kept = self._kept.get(task, [])
        return len(kept) < self._room or self._hash(task, row) < -kept[0][0]

    def add(self, task: str, row: int, conversation: Conversation) -> None:
        """Add a usable training record, unless the pool has its prompt already."""
        kept, prompts = self._kept.setdefault(task, []), self._prompts.setdefault(task, set())
        prompt = prompt_key(conversation)
        if prompt in prompts:
            return
        prompts.add(prompt)
        heapq.heappush(kept, (-self._hash(task, row), prompt, conversation))
        self._trim(task)

    def write(self, path: Path) -> None:
        """One line per row, in order of task and hash."""
        lines = []
        for task in sorted(self._kept):
            self._trim(task)
            lines += [_line(task, row) for *_, row in sorted(self._kept[task], key=lambda each: each[:2], reverse=True)]
        commit(path, "".join(lines).encode())

    @property
    def _room(self) -> int:
        return max(FEWEST, POOL // max(1, len(self._kept)))

    def _trim(self, task: str) -> None:
        while len(self._kept[task]) > self._room:
            _, prompt, _ = heapq.heappop(self._kept[task])
            self._prompts[task].remove(prompt)

    def _hash(self, task: str, row: int) -> int:
        if task not in self._keys:
            self._keys[task] = key_of(self._seed, "exemplar", task)
        return key_of(self._keys[task], row)


def _line(task: str, row: Conversation) -> str:
    messages = [[each.role, each.content, each.context] for each in row.messages]
    return json.dumps({"task": task, "messages": messages, "fields": dict(row.fields)}) + "\n"


def read(path: Path) -> Pools:
    """The pools as ``Pool.write`` left them, by task."""
    pools: dict[str, list[Conversation]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        content: dict[str, Any] = json.loads(line)
        messages = tuple(Message(*each) for each in content["messages"])
        pools.setdefault(content["task"], []).append(Conversation(messages, fields=content["fields"]))
    return {task: tuple(rows) for task, rows in pools.items()}
