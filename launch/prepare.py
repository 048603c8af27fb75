"""The corpus of a run, prepared before the run where it is absent: training itself never prepares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conf.schema import RunConfig
from data_prep.identity import corpus_path
from data_prep.staging import is_remote
from launch.guard import guarded
from launch.torchrun import child_environment


def is_prepared(cfg: RunConfig) -> bool:
    """Whether the corpus of ``cfg`` is finished: its manifest is written last. Training checks the content.

    One behind a URL is only ever read, so it is for training to find it wanting.
    """
    return is_remote(cfg.data.prepared) or (Path(corpus_path(cfg)) / "MANIFEST.json").is_file()


def ensure_corpus(cfg: RunConfig, arguments: Sequence[str]) -> int:
    """Run ``python -m data_prep`` with the command line of the run if its corpus is not there; the exit code.

    A process of its own, because it loads tokenizers; its output goes to this terminal.
    """
    if is_prepared(cfg):
        return 0
    print(f"corral: preparing the corpus {corpus_path(cfg)}", flush=True)
    command = [sys.executable, "-m", "data_prep", *arguments]
    return subprocess.run(guarded(command), env={**os.environ, **child_environment(1)}, check=False).returncode
