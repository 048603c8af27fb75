"""What a preparation process loads from disk once and keeps: the tokenizer and the exemplars of the source at hand.

Keyed by the path and by what lies there, because another preparation in the same process may have put something else
at the same path.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from data_prep.samples import exemplars
from data_prep.samples.exemplars import Pools
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer


def tokenizer(folder: str) -> Tokenizer:
    """The tokenizer in ``folder``; raises what ``load_tokenizer`` does."""
    return _tokenizer(folder, *_state(folder))


def pools(path: str) -> Pools:
    """The exemplars in the file ``path``."""
    return _pools(path, *_state(path))


def _state(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=1)
def _tokenizer(folder: str, inode: int, modified_ns: int) -> Tokenizer:
    return load_tokenizer(folder)


@lru_cache(maxsize=1)
def _pools(path: str, inode: int, modified_ns: int) -> Pools:
    return exemplars.read(Path(path))
