"""Checkpoints that a test writes or changes itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from train.checkpoint.check import seal_of, verified
from train.checkpoint.layout import Damaged


def write_sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """``manifest`` as MANIFEST.json with its seal, after the sizes and sums of the files that it lists."""
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = json.dumps(manifest).encode()
    (folder / "MANIFEST.json").write_bytes(content)
    (folder / "MANIFEST.sha256").write_bytes(seal_of(content))


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def is_found(path: Path) -> bool:
    """Whether the checkpoint at ``path`` is taken for damaged."""
    try:
        verified(path)
    except Damaged:
        return True
    return False
