"""``python -m train.fingerprint run_dir=DIR [checkpoint=N]``: one sha256 of a run's trained state.

Over the full-precision trainable weights and Adam moments in one layout: parameters by name, each with its shape,
then weight, exp_avg, exp_avg_sq as little-endian fp32. Runs that are bitwise equal give equal sums whatever the
number of ranks they were stored from; another ZeRO stage differs by rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

from conf.errors import leave_with_code
from train.arguments import run_arguments, whole_number
from train.checkpoint.layout import Stored, latest_good

CHUNK = 1 << 24
"""Elements read at once: 64 MiB."""


def fingerprint(path: Path) -> str:
    """sha256 (hex) of the checkpoint folder ``path``."""
    digest = hashlib.sha256()
    stored = Stored(path, json.loads((path / "MANIFEST.json").read_text()))
    kinds = ("weight", "exp_avg", "exp_avg_sq") if stored.manifest["optimizer_steps"] else ("weight",)
    with stored:
        for name, shape in sorted(stored.shapes.items()):
            digest.update(f"{name} {shape} {stored.manifest['optimizer_steps']}\n".encode())
            numel = math.prod(shape)
            for kind in kinds:
                for start in range(0, numel, CHUNK):
                    piece = stored.read(name, kind, start, min(CHUNK, numel - start))
                    digest.update(piece.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def main() -> int:
    usage = "usage: python -m train.fingerprint run_dir=DIR [checkpoint=N]"
    found = run_arguments(sys.argv[1:], ("run_dir", "checkpoint"), usage)
    print(fingerprint(latest_good(Path(found["run_dir"]), whole_number(found, "checkpoint"))))
    return 0


if __name__ == "__main__":
    leave_with_code(main)
