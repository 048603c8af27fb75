"""Prepares the corpus of a run before the run, if it does not exist: training itself never prepares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conf.safety.arguments import for_children
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.staging import is_remote
from launch.guard import guarded
from launch.torchrun import child_environment


def is_prepared(cfg: RunConfig) -> bool:
    """Whether the corpus of ``cfg`` is finished: its manifest is written last. Training checks the content.

    A corpus behind a URL is only read, so training finds out whether it is complete.
    """
    return is_remote(cfg.data.prepared) or (Path(corpus_path(cfg)) / "MANIFEST.json").is_file()


def ensure_corpus(cfg: RunConfig, arguments: Sequence[str]) -> int:
    """Run ``python -m data_prep`` with the command line of the run if its corpus is missing; returns the exit code.

    It runs in a separate process, because it loads tokenizers. Its output goes to this terminal.
    """
    if is_prepared(cfg):
        return 0
    print(f"corral: preparing the corpus {corpus_path(cfg)}", flush=True)
    command = [sys.executable, "-m", "data_prep", *for_children(arguments)]
    return subprocess.run(guarded(command), env={**os.environ, **child_environment(1)}, check=False).returncode
