"""The corpus of a run, wherever it lies."""

from __future__ import annotations

from typing import Literal

from conf.schema import RunConfig
from data_prep.identity import corpus_path
from data_prep.shards import Corpus, open_corpus
from data_prep.staging import is_remote, stage


def open_prepared(cfg: RunConfig, *, verify: Literal["sizes", "hashes"] = "hashes", hint: str = "") -> Corpus:
    """``open_corpus`` of the run's corpus; one behind a URL is brought to this node first, and hashed only there.

    Raises what ``stage`` and ``open_corpus`` raise.
    """
    path = corpus_path(cfg)
    if cfg.data.prepared is not None and is_remote(cfg.data.prepared):
        staged = stage(cfg.data.prepared, path, verify=verify)
        return open_corpus(staged, verify="rows" if verify == "hashes" else "sizes", hint=hint)
    return open_corpus(path, verify=verify, hint=hint)
