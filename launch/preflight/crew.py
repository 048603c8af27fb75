"""The processes that look at the nodes, one on each: listened to, and let go on step by step."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from conf.attempts.preflight import (
    ABSENT,
    BITS,
    CLOCK,
    FACT,
    FAULT,
    GO,
    LEFT,
    LINK,
    TOGETHER,
    heard,
    node_name,
)
from launch.preflight.links import Link
from launch.preflight.verdict import Node
from launch.torchrun import child_environment

FIRST_S = 60.0
"""Seconds for the first node to come to the next word, and then for the others: cold caches of a shared file system."""


class Crew:
    """One process per node, whose words come out of ``answers`` and are kept in ``nodes``, ``links``, ``together``."""

    def __init__(self, names: Sequence[str], answers: IO[str], orders: IO[str]) -> None:
        self.names, self.answers, self.orders = names, answers, orders
        self.nodes = {name: Node() for name in names}
        self.links: list[Link] = []
        self.absent: set[str] = set()
        self.together: tuple[float, float] | None = None
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.answers:
            self._lines.put((time.time(), line))
        self._lines.put((time.time(), ""))

    def send(self, line: str) -> None:
        """To every node, of which some may be gone."""
        with contextlib.suppress(BrokenPipeError):
            self.orders.write(line)
            self.orders.flush()

    def go_on(self, until: str) -> list[str]:
        """Let all nodes go on until they say ``until``; returns those that do not."""
        self.send(f"{GO}\n")
        return self.wait(until)

    def wait(self, until: str) -> list[str]:
        """Listen until every node has said the word ``until``; returns those that have not."""
        waiting, deadline = list(self.names), time.monotonic() + FIRST_S
        left: list[str] = []
        while waiting:
            try:
                stamp, line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if not line:  # all have left
                self._lines.put((stamp, line))
                break
            words = heard(line)
            if words is None:
                print(line, end="", file=sys.stderr)
                continue
            node, kind, values = words
            if kind == until and node in waiting:
                if len(waiting) == len(self.names):
                    deadline = time.monotonic() + FIRST_S
                waiting.remove(node)
            elif kind == LEFT and node in waiting:
                waiting.remove(node)
                left.append(node)
            elif node in self.nodes:
                self._take(node, kind, values, stamp)
        return [name for name in self.names if name in waiting or name in left]

    def _take(self, name: str, kind: str, values: list[Any], stamp: float) -> None:
        node = self.nodes[name]
        if kind == CLOCK:
            node.offset = values[0] - stamp
        elif kind == FACT:
            node.facts[values[0]] = values[1]
        elif kind == FAULT:
            node.faults[values[0]] = values[1]
        elif kind == BITS:
            node.devices, node.bits = values
        elif kind == ABSENT:
            self.absent |= {self.names[rank] for rank in values[0]}
        elif kind == LINK:
            other, *found = values
            ends = (name, self.names[other])
            self.links.append(Link(ends, *found) if len(found) > 1 else Link(ends, failure=found[0]))
        elif kind == TOGETHER:
            self.together = (values[0], values[1])


@contextlib.contextmanager
def this_machine() -> Iterator[Crew]:
    """A crew of one, which leaves at the end."""
    command = [sys.executable, "-m", "launch.preflight.node"]
    environment = {**os.environ, **child_environment(1)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Crew([node_name()], process.stdout, process.stdin)
        finally:
            process.stdin.close()
