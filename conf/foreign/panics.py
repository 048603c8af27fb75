"""What a library in Rust prints when it panics: places in its sources. The sentence of ``reading`` says it instead."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

SIGN = b" panicked at "
STDERR = 2


@contextmanager
def untold() -> Iterator[None]:
    """Keep back what is written to the descriptor of stderr inside, and drop it if it tells of a panic.

    Of all threads of the process: keep the block short.
    """
    sys.stderr.flush()
    try:
        before = os.dup(STDERR)
    except OSError:  # a process without one
        yield
        return
    with TemporaryFile() as kept:
        os.dup2(kept.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)
            kept.seek(0)
            if SIGN not in (said := kept.read()):
                os.write(STDERR, said)
