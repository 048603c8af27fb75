"""What a checkpoint looks like on disk, and how it is read and trusted. Needs no process group and no GPU.

    checkpoints/LATEST                     name of the newest folder, for people
    checkpoints/step-00000100/
        MANIFEST.json                      written last: sizes, sha256, where each tensor lies, the cursor
        state-00000-of-00002.safetensors   the fragments rank 0 owned: NAME::weight, NAME::exp_avg, NAME::exp_avg_sq
        rng-00000-of-00002.safetensors     rank 0's random states

A fragment is a contiguous fp32 range of one flattened trainable parameter. MANIFEST["tensors"][NAME] holds the shape
and the pieces [file, start, elements], so any range of any parameter can be read by any number of ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from conf.errors import StorageError

VERSION = 1


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


@dataclass
class Stored:
    """A checkpoint on disk; open it as a context manager to read tensors."""

    path: Path
    manifest: dict[str, Any]

    def __enter__(self) -> Stored:
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: entry["shape"] for name, entry in self.manifest["tensors"].items()}

    def read(self, name: str, kind: str, start: int, numel: int) -> torch.Tensor:
        """Elements ``start`` .. ``start + numel`` of a flattened ``weight`` or moment, 1-D fp32, on the CPU."""
        result = torch.empty(numel, dtype=torch.float32)
        for file, piece_start, piece_numel in self.manifest["tensors"][name]["pieces"]:
            low, high = max(start, piece_start), min(start + numel, piece_start + piece_numel)
            if low < high:
                piece = self._open(file).get_slice(f"{name}::{kind}")
                result[low - start : high - start] = piece[low - piece_start : high - piece_start]
        return result

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = self._stack.enter_context(safe_open(self.path / file, framework="pt"))
        return self._files[file]

    def rng(self, rank: int) -> dict[str, torch.Tensor] | None:
        """Random states of ``rank``, or None if the run had fewer ranks."""
        file = f"rng-{rank:05d}-of-{self.manifest['world']:05d}.safetensors"
        if file not in self.manifest["files"]:
            return None
        opened = self._open(file)
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The trainable weights of a checkpoint by canonical name, fp32, on the CPU."""
    stored = Stored(path, json.loads((path / "MANIFEST.json").read_text()))
    with stored:
        return {
            name: stored.read(name, "weight", 0, math.prod(shape)).view(shape) for name, shape in stored.shapes.items()
        }


def fault_of(path: Path) -> str:
    """Why the checkpoint at ``path`` cannot be trusted, in a few words; empty if every byte is as written."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        files = manifest["files"]
        if manifest["version"] != VERSION or not files:
            return "MANIFEST.json is of another version or lists no files"
    except (OSError, ValueError, KeyError, TypeError):
        return "MANIFEST.json is missing or unreadable"
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if sha256_of(file) != entry["sha256"]:
            return f"{name} does not have its recorded sha256"
    return ""


def steps_on_disk(run_dir: Path) -> list[int]:
    """Steps with a published folder, newest first; nothing is said about their content."""
    folders = (run_dir / "checkpoints").glob("step-*")
    return sorted((int(path.name.removeprefix("step-")) for path in folders if path.name[5:].isdigit()), reverse=True)


def has_history(run_dir: Path) -> bool:
    """Whether this run ever published a checkpoint, good or not."""
    folder = run_dir / "checkpoints"
    return (folder / "LATEST").exists() or any(folder.glob("step-*")) or any(folder.glob(".corrupt-*"))


def latest_good(run_dir: Path, step: int | None = None) -> Path:
    """The newest checkpoint whose every byte verifies, or that of ``step``. Renames bad ones to ``.corrupt-*``.

    Raises StorageError (74) if there is none: a run with a history never starts again from step 0 by itself.
    """
    faults = []
    for found in [step] if step is not None else steps_on_disk(run_dir):
        path = folder_of(run_dir, found)
        fault = fault_of(path)
        if not fault:
            return path
        faults.append(f"{path.name}: {fault}")
        if step is None:
            path.rename(path.with_name(f".corrupt-{path.name}-{time.time_ns()}"))  # the step may go wrong again
            print(f"corral: checkpoint {path} is not used: {fault}; taking the one before it", flush=True)
    detail = "; ".join(faults) or "no step-* folder"
    raise StorageError(
        f"{run_dir / 'checkpoints'} holds no checkpoint that verifies ({detail}). Restore one from a backup, "
        f"or start over in a fresh run_dir"
    )
