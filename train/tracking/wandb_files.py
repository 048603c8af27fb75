"""Reads what W&B has written to this machine's disk: after a death of the node, less than it was given."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK = 7, 1 << 15, 7
"""Bytes of a file's header, of a block, and of a chunk's header: crc32, length, type."""
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file, which is a log of LevelDB's format, up to the place where a death cut it off."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), HEADER, b""
    while position + CHUNK <= len(content):
        if (left := BLOCK - position % BLOCK) < CHUNK:  # a header is never cut in two
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + CHUNK])
        parts += content[position + CHUNK : position + CHUNK + length]
        position += CHUNK + length
        if position > len(content):
            return
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            try:
                record.ParseFromString(parts)
            except DecodeError:
                return
            parts = b""
            yield record


def sent_offline(run_dir: Path, run_id: str) -> dict[int, set[str]]:
    """Step -> names of the metrics that the offline files of a run's attempts hold."""
    found: dict[int, set[str]] = {}
    for path in sorted(run_dir.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
        for record in records(path):
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if items.get("step", "").isdigit():
                    found.setdefault(int(items["step"]), set()).update(items)
    return found
