"""Writes a file of tensors in the safetensors format, and its sha256 from the same bytes on their way to the disk.

The library's own writer leaves the sum to a second reading of the file. Every long call here, of hashing, writing and
fsync, releases Python's lock, so that training goes on beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train.process.faultpoint import faultpoint

NAMES = {torch.int64: "I64", torch.float32: "F32", torch.uint8: "U8"}
"""Of the dtypes that checkpoints hold, the widest first, which is their order in a file: so each begins aligned."""
PART = 1 << 24
"""Bytes that are hashed and written at a time."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write ``tensors`` to ``path`` and flush them to the disk; returns the file's entry in the MANIFEST.

    A tensor on a GPU or of a wider view is copied when its turn comes. Raises OSError.
    """
    order = sorted(tensors, key=lambda name: (list(NAMES).index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=1 << 20) as file:
        for content in (len(text).to_bytes(8, "little"), text):
            digest.update(content)
            file.write(content)
        for name in order:
            faultpoint("checkpoint.in_file")
            data = tensors[name].detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), PART):
                digest.update(data[start : start + PART])
                file.write(data[start : start + PART])
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
