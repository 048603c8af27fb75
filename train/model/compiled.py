"""Blocks under torch.compile: one function for all lengths, eager in evaluation, and counted (``compute.kernels``).

A call that fits no version of a compiled function compiles another, until torch's limit of versions is reached. From
then on such calls run eagerly, slower, with one line in the log. So a run counts the calls of compiled graphs per step,
and names every recompilation and every function that is left eager, with torch's reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo import utils

from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart

BACKEND = "inductor"
RECOMPILE_LIMIT = 64
"""Versions of a function; torch's own limit is 8. Rows with and without shared prefixes, recomputed and plain blocks,
windows and full attention, a single row or token: each may need a version, and they multiply."""
KEPT = 1024
"""Compilations that torch remembers until ``news`` reads them; its own number, 64, is less than a first step."""


@dataclass
class Compilations:
    """What this process has compiled. Torch keeps its versions by process, so there is one of these."""

    calls: int = 0
    """Calls of compiled graphs in forward passes, recomputed ones too, since ``take``."""
    graphs: int = 0
    recompiled: int = 0
    left_eager: int = 0
    functions: dict[str, str] = field(default_factory=dict)
    """Torch's number of a function -> its name."""
    told: set[str] = field(default_factory=set)

    def take(self) -> dict[str, float]:
        """The metrics of a step, for which it begins to count calls anew; empty where blocks are not compiled."""
        calls, self.calls = self.calls, 0
        if not self.graphs and not self.left_eager:
            return {}
        return {
            "perf/compiled_calls": calls,
            "perf/compiled_graphs": self.graphs,
            "perf/recompilations": self.recompiled,
            "perf/left_eager": self.left_eager,
        }

    def news(self) -> tuple[list[str], list[str]]:
        """Since the last call: what was compiled again and why, and what is left eager and why; a sentence each, and
        the same sentence once."""
        entries = utils.get_compilation_metrics()
        utils.clear_compilation_metrics()
        again, eagerly = [], []
        for entry in entries:
            if entry.co_name and entry.is_forward is not False:
                place = f"{Path(entry.co_filename or '').name}:{entry.co_firstlineno}"
                self.functions[_number(entry)] = f"{entry.co_name} ({place})"
            if entry.fail_type:
                self.left_eager += 1
                eagerly.append(f"{self._function(entry)} runs eagerly: {_why(entry)}")
            elif entry.recompile_reason:
                self.recompiled += 1
                again.append(f"{self._function(entry)} was compiled again: {_line(entry.recompile_reason)}")
        return self._new(again), self._new(eagerly)

    def _function(self, entry: utils.CompilationMetrics) -> str:
        return self.functions.get(_number(entry), "a function")

    def _new(self, sentences: Sequence[str]) -> list[str]:
        found = [each for each in dict.fromkeys(sentences) if each not in self.told]
        self.told.update(found)
        return found


def _number(entry: utils.CompilationMetrics) -> str:
    """``12/3``, the third version of function 12, -> ``12``."""
    return str(entry.compile_id).split("/")[0]


def _why(entry: utils.CompilationMetrics) -> str:
    """A failure by its first line, and at the limit of versions also the reason for one more."""
    why = _line(entry.fail_reason or entry.fail_type or "")
    return f"{why}; a version more was asked for: {_line(entry.recompile_reason)}" if entry.recompile_reason else why


def _line(text: str) -> str:
    """The first line of torch's explanation, without its comment on the source and the numbers of the version."""
    first = text.strip().splitlines()[0] if text.strip() else "unknown"
    return " ".join(first.split("  #")[0].split())[:200]


compilations = Compilations()


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile ``blocks`` when they are first called. All use one backend, so that blocks share their versions."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    utils.set_compilation_metrics_limit(KEPT)
    torch._dynamo.callback.on_compile_start(lambda _: heart.enter_alone(Phase.COMPILATION))
    for block in blocks:
        block.compile(dynamic=True, backend=_counted)


def _counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    compiled = torch._dynamo.lookup_backend(BACKEND)(graph, inputs)
    compilations.graphs += 1

    def call(*arguments: Any) -> Any:
        compilations.calls += 1
        return compiled(*arguments)

    return call


@contextmanager
def eager() -> Iterator[None]:
    """Inside the context nothing is compiled, and nothing that is compiled is called.

    Evaluation makes calls that training never makes: a cache that grows, other attention, no gradients. Each would be a
    version, and with all versions used up, training would run eagerly.
    """
    with torch.compiler.set_stance("force_eager"):
        yield
