"""The report of a corpus: its figures, on the terminal and as a page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from conf.disk.folders import is_ours
from conf.durable import commit
from conf.schema import RunConfig
from data_prep.corpus.shards import open_corpus
from data_prep.report.figures import build
from data_prep.report.html import page

__all__ = ["write_report"]


def write_report(cfg: RunConfig, path: Path) -> dict[str, Any]:
    """Build the report of a finished corpus and write report.json and report.html into it.

    Not into one that is read-only, or another user's.
    """
    corpus = open_corpus(path, verify="sizes")
    report = build(cfg, corpus)
    if not os.access(path, os.W_OK) or not is_ours(path):  # a finished corpus that is shared
        return report
    commit(path / "report.json", json.dumps(report, indent=1).encode())
    commit(path / "report.html", page(report, corpus).encode())
    return report
