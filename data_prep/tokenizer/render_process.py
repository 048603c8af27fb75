"""The process in which chat templates are rendered (``renderer`` starts it): a hang or a flood there ends it alone.

It reads messages on stdin and answers on stdout, in lines of JSON. A message is a template with the special tokens, if
they are others than before, then one conversation per line, then an empty line. For each conversation comes one line:
``[null, text]``, or ``[reason, what the template said]``. A conversation that takes too much CPU time ends the process
by SIGPROF. It has no environment but what Python needs, writes no files, and ends with its parent, whose pipe closes.
"""

from __future__ import annotations

import json
import resource
import select
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from conf.foreign.limits import (
    MIB,
    RENDER_BYTES,
    RENDER_SECONDS,
    RENDER_SECONDS_PER_MIB,
    RENDERED_CHARACTERS,
    RENDERED_TIMES,
)
from conf.foreign.reasons import LIMITS, REFUSES

IDLE_SECONDS = 30.0
"""Without a message for so long it ends. A run asks at its start, and then perhaps never again."""
LONGEST_WORD = 2_000
"""Characters of what a template says that are passed on."""


def main() -> None:
    render = _imported()
    _take_limits()
    use: dict[str, Any] = {}
    while select.select([sys.stdin.buffer], [], [], IDLE_SECONDS)[0]:
        head = sys.stdin.buffer.readline()
        if not head:
            return
        use = json.loads(head) or use
        answers = [_answer(render, use, line) for line in list(_lines(sys.stdin.buffer))]
        sys.stdout.buffer.write(b"".join(answers))
        sys.stdout.buffer.flush()


def _imported() -> Any:
    """transformers' own ``render_jinja_template``.

    The packages around its file take a second to import, of which it needs nothing: here they are empty ones.
    """
    found = find_spec("transformers")
    (root,) = found.submodule_search_locations if found and found.submodule_search_locations else ("",)
    for name, path in (("transformers", root), ("transformers.utils", f"{root}/utils")):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [path]
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except (ImportError, AttributeError):  # of a release whose file needs more
        for name in [each for each in sys.modules if each.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template


def _take_limits() -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + RENDER_BYTES, size + RENDER_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while (line := stream.readline()) not in (b"\n", b""):
        yield line


def _answer(render: Any, use: dict[str, Any], line: bytes) -> bytes:
    turns, tools, opening = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, RENDER_SECONDS + RENDER_SECONDS_PER_MIB * len(line) / MIB)
    try:
        found: list[Any] = [None, _text(render, use, turns, tools, opening)]
        if len(found[1]) > RENDERED_CHARACTERS + RENDERED_TIMES * len(line):
            found = [LIMITS, f"it wrote {len(found[1]):,} characters"]
        found[1].encode()
    except UnicodeEncodeError:
        found = [REFUSES, "it wrote a half of a character (a lone surrogate)"]
    except MemoryError:
        found = [LIMITS, f"it took more than {RENDER_BYTES >> 20} MiB of memory"]
    except Exception as error:  # a template may raise whatever it likes: its word is the reason
        found = [REFUSES, str(error)[:LONGEST_WORD]]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return json.dumps(found).encode() + b"\n"


def _text(render: Any, use: dict[str, Any], turns: Any, tools: Any, opening: bool) -> str:
    """As transformers' ``apply_chat_template`` renders."""
    (text,), _ = render(
        conversations=[turns],
        tools=tools,
        chat_template=use["template"],
        add_generation_prompt=opening,
        **use["specials"],
    )
    return str(text)


if __name__ == "__main__":
    main()
