"""Waits for what W&B's service writes to a .wandb file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from train.tracking.wandb_files import records


def all_records(path: Path) -> list[Any]:
    """Records of a run that has ended: W&B's service writes the last block shortly after finish() has returned."""
    deadline = time.monotonic() + 30
    while True:
        found = list(records(path))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, (path.name, path.stat().st_size)
        time.sleep(0.05)
