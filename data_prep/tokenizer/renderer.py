"""Chat templates rendered in a process of their own, because a template is a program of whoever published it.

jinja's sandbox keeps it from files and code. It does not keep it from ``range(99999)`` in ``range(99999)``, or from
``'%1000000000d' % 1``. Many conversations travel in one message: the way costs some microseconds for each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InternalError
from conf.foreign.limits import MIB, RENDER_SECONDS
from conf.foreign.reasons import LIMITS
from data_prep.rows.conversation import Rejected

ROOT = Path(__file__).resolve().parents[2]
MESSAGE_BYTES = 4 * MIB
"""Of conversations that travel together, at most; one longer one travels alone."""
KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME")
"""Variables that Python may need to start. Others, with their secrets, are not given away."""


@dataclass(frozen=True)
class Ask:
    """What a template is asked to write."""

    turns: Sequence[Mapping[str, Any]]
    tools: list[Any] | None = None
    opening: bool = False
    """With the beginning of the answer that is to come."""


class Renderer:
    """The process, started when it is first asked and again when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._used: dict[str, Any] = {}
        self._lock = threading.Lock()

    def texts(self, template: str, specials: Mapping[str, Any], asks: Sequence[Ask]) -> list[str | Rejected]:
        """The text of each, or what the template has against it: reasons REFUSES and LIMITS. Raises InternalError."""
        use = {"template": template, "specials": dict(specials)}
        lines = [_line(ask) for ask in asks]
        found: dict[bytes, str | Rejected] = {}
        with self._lock:
            for part in _parts(dict.fromkeys(lines)):  # conversations of one shape ask the same of it
                found |= zip(part, self._answers(use, part), strict=True)
        return [found[line] for line in lines]

    def _answers(self, use: dict[str, Any], lines: list[bytes]) -> list[str | Rejected]:
        ended = 0
        for _ in range(2):  # an idle one may end while it is asked
            answers, ended = self._exchange(use, lines)
            if answers is not None:
                return answers
            if ended:
                break
        if len(lines) > 1:  # one of them ended it: each by itself
            return [answer for line in lines for answer in self._answers(use, [line])]
        if ended == -signal.SIGPROF:
            return [Rejected(LIMITS, f"it took more than {RENDER_SECONDS:g} s")]
        if ended < 0:
            return [Rejected(LIMITS, f"it ended its process by {signal.Signals(-ended).name}")]
        raise InternalError("the process that renders chat templates cannot be started (data_prep.tokenizer)")

    def _exchange(self, use: dict[str, Any], lines: list[bytes]) -> tuple[list[str | Rejected] | None, int]:
        """(an answer for each, or None; how the process ended that gave none)."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        head = b"null\n" if use == self._used else json.dumps(use).encode() + b"\n"
        try:
            process.stdin.write(b"".join([head, *lines, b"\n"]))
            process.stdin.flush()
        except BrokenPipeError:
            return None, self._end()
        answers: list[str | Rejected] = []
        for line in process.stdout:
            reason, text = json.loads(line)
            answers.append(text if reason is None else Rejected(reason, text))
            if len(answers) == len(lines):
                self._used = use
                return answers, 0
        return None, self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            search = os.environ.get("PYTHONPATH")
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{search}" if search else str(ROOT)}
            environment |= {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
            self._used = {}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "data_prep.tokenizer.render_process"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which closes the pipe
            )
        return self._process

    def _end(self) -> int:
        """The exit code of a process that answers no more."""
        process, self._process = self._process, None
        assert process is not None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return process.wait()


def _line(ask: Ask) -> bytes:
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in ask.turns]
    return json.dumps([turns, ask.tools, ask.opening]).encode() + b"\n"


def _parts(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


renderer = Renderer()
"""This process's."""
