"""Print one sha256 of a run's trained state.

It covers the full-precision trainable weights and the Adam moments in one layout: parameters by name, each with its
shape, then weight, exp_avg and exp_avg_sq as little-endian fp32. If fragment hooks keep extras, their names stand after
the shape and their values after the moments. Runs that are equal bit for bit give equal sums, whatever the number of
ranks that stored them. Another ZeRO stage differs by rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

from conf.command import run_dir_from_argv, whole_number
from conf.errors import leave_with_code
from train.checkpoint.check import latest_good
from train.checkpoint.layout import MANIFEST, Stored

CHUNK = 1 << 24
"""Elements read at once: 64 MiB."""


def fingerprint(path: Path) -> str:
    """sha256 (hex) of the checkpoint folder ``path``."""
    digest = hashlib.sha256()
    stored = Stored(path, json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    kinds: tuple[str, ...] = ("weight", "exp_avg", "exp_avg_sq") if stored.manifest["optimizer_steps"] else ("weight",)
    kinds += tuple(stored.extras)
    names_of_extras = "".join(f" {extra}" for extra in stored.extras)
    with stored:
        for name, shape in sorted(stored.shapes.items()):
            digest.update(f"{name} {shape} {stored.manifest['optimizer_steps']}{names_of_extras}\n".encode())
            numel = math.prod(shape)
            for kind in kinds:
                for start in range(0, numel, CHUNK):
                    piece = stored.read(name, kind, start, min(CHUNK, numel - start))
                    digest.update(piece.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def main() -> int:
    keys = {"checkpoint": "step of a checkpoint; default: the newest that verifies"}
    run_dir, own = run_dir_from_argv(sys.argv[1:], command="train.fingerprint", extra=keys)
    print(fingerprint(latest_good(run_dir, whole_number(own, "checkpoint")).path))
    return 0


if __name__ == "__main__":
    leave_with_code(main)
