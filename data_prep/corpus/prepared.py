"""A prepared corpus, wherever it lies."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.shards import Corpus, open_corpus
from data_prep.corpus.staging import is_remote, local_folder, stage

Verify = Literal["sizes", "hashes"]


def open_prepared(cfg: RunConfig, *, verify: Verify = "hashes", hint: str = "") -> Corpus:
    """The run's own corpus; raises what ``open_at`` raises."""
    url = cfg.data.prepared if is_remote(cfg.data.prepared) else None
    return open_at(url or str(corpus_path(cfg)), cfg.data.cache, verify=verify, hint=hint)


def open_at(
    place: str, cache: str | None, *, verify: Verify = "hashes", hint: str = "", key: str = "data.prepared"
) -> Corpus:
    """``open_corpus`` of a folder or URL; one behind a URL is brought below ``cache`` first, and hashed only there.

    ``key`` is the setting that names it. Raises what ``stage`` and ``open_corpus`` raise.
    """
    if not is_remote(place):
        return open_corpus(Path(place).expanduser(), verify=verify, hint=hint)
    staged = _staged(place, local_folder(place, cache), verify, key)
    return open_corpus(staged, verify="rows" if verify == "hashes" else "sizes", hint=hint)


@cache
def _staged(url: str, folder: Path, verify: Verify, key: str) -> Path:
    """``stage``, once per process: every rank opens the further corpora at every evaluation."""
    return stage(url, folder, verify=verify, key=key)
