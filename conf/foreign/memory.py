"""A bound of the memory that a library takes while it unpacks what a file claims. Linux only."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Inside it, this process may take ``size`` bytes beside those it has; more raises MemoryError.

    The bound is the kernel's, of address space, and for all threads of the process. Keep the block short.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    bound = taken + size if soft == resource.RLIM_INFINITY else min(taken + size, soft)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
