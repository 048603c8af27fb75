"""The layout of a checkpoint on disk, and how to read one. Needs no process group and no GPU.

    checkpoints/LATEST                     name of the newest folder, for people
    checkpoints/step-00000100/
        MANIFEST.json                      sizes, sha256, where each tensor lies, the cursor
        MANIFEST.sha256                    its own sum, as ``sha256sum`` prints it
        state-00000-of-00002.safetensors   the fragments rank 0 owned: NAME::weight, NAME::exp_avg, NAME::exp_avg_sq
        rng-00000-of-00002.safetensors     rank 0's random states

A fragment is a contiguous fp32 range of one flattened trainable parameter. MANIFEST["tensors"][NAME] holds the shape
and the pieces [file, start, elements], so any range of any parameter can be read by any number of ranks. Where fragment
hooks keep further tensors beside each weight, MANIFEST["extras"] lists their names and the files hold NAME::EXTRA.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from conf.errors import StorageError
from conf.frozen import thawed
from conf.schema import RunConfig

VERSION = 2
READABLE = (1, 2)
"""Version 1 had no seal; the layout is the same."""

MANIFEST, SEAL = "MANIFEST.json", "MANIFEST.sha256"


class Damaged(StorageError):
    """A checkpoint is not what was written; the one before it may be."""


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


@dataclass(frozen=True, eq=False)
class Pieces:
    """Where the elements of one tensor lie: piece i is elements ``bounds[i]`` to ``bounds[i + 1]`` of it."""

    files: Sequence[str]
    """Of the whole checkpoint, in one list for all tensors."""
    file: npt.NDArray[np.int32]
    """[pieces] The file of each piece, as an index into ``files``."""
    bounds: npt.NDArray[np.int64]
    """[pieces + 1]"""

    def between(self, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """(file, first element, number of elements) of the pieces that hold elements ``start`` to ``end``."""
        first, last = np.searchsorted(self.bounds, [start + 1, end]).tolist()
        for index in range(max(first - 1, 0), min(last, len(self.file))):
            low, high = self.bounds[index : index + 2].tolist()
            yield self.files[self.file[index]], low, high - low


def in_arrays(manifest: dict[str, Any]) -> dict[str, Any]:
    """``manifest``, which ``fault_of_cover`` has passed, with Pieces in place of its lists of pieces."""
    files = list(manifest["files"])
    number = {name: index for index, name in enumerate(files)}
    tensors = {}
    for name, entry in manifest["tensors"].items():
        if isinstance(entry["pieces"], Pieces):
            return manifest
        pieces = sorted(entry["pieces"], key=lambda piece: piece[1])
        bounds = [0, *(start + numel for _, start, numel in pieces)]
        file = np.array([number[piece[0]] for piece in pieces], np.int32)
        tensors[name] = {**entry, "pieces": Pieces(files, file, np.array(bounds, np.int64))}
    return {**manifest, "tensors": tensors}


@dataclass
class Stored:
    """A checkpoint on disk; open it as a context manager to read tensors."""

    path: Path
    manifest: dict[str, Any]
    """MANIFEST.json; kept ``in_arrays``."""
    bytes_read: int = field(default=0, init=False, compare=False)
    """How many bytes of weights, moments and extras ``read`` has taken from the files."""

    def __post_init__(self) -> None:
        self.manifest = in_arrays(self.manifest)

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
    def config(self) -> RunConfig:
        """Of the run that made it. Raises ConfigError if this release cannot read it."""
        return thawed(self.manifest.get("config", {}), f"the config in {self.path}")

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: entry["shape"] for name, entry in self.manifest["tensors"].items()}

    @property
    def extras(self) -> list[str]:
        """Names of the tensors that fragment hooks keep beside each weight; usually none."""
        return list(self.manifest.get("extras", []))

    def read(self, name: str, kind: str, start: int, numel: int) -> torch.Tensor:
        """Elements ``start`` .. ``start + numel`` of a flattened ``weight``, moment or extra, 1-D fp32, on the CPU.

        Raises Damaged if a file does not hold what the MANIFEST says, or no file holds one of the elements.
        """
        result = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for file, piece_start, piece_numel in self.manifest["tensors"][name]["pieces"].between(start, start + numel):
            low, high = max(start, piece_start), min(start + numel, piece_start + piece_numel)
            piece = self._piece(file, f"{name}::{kind}", piece_numel)
            result[low - start : high - start] = piece[low - piece_start : high - piece_start]
            filled += high - low
        if filled != numel:
            raise Damaged(f"{filled} of the elements {start} to {start + numel - 1} of {name} are stored")
        self.bytes_read += numel * result.element_size()
        return result

    def _piece(self, file: str, key: str, numel: int) -> Any:
        """What can be sliced of ``key`` in ``file``: ``numel`` fp32 numbers."""
        try:
            piece = self._open(file).get_slice(key)
        except SafetensorError as error:
            raise Damaged(f"{file}: {error}") from None
        if piece.get_shape() != [numel] or piece.get_dtype() != "F32":
            raise Damaged(f"{file}: {key} is {piece.get_dtype()} {piece.get_shape()}, {MANIFEST} says F32 [{numel}]")
        return piece

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = self._stack.enter_context(safe_open(self.path / file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise Damaged(f"{file}: {error}") from None
        return self._files[file]

    def rng(self, rank: int) -> dict[str, torch.Tensor] | None:
        """Random states of ``rank``, or None if the run had fewer ranks. Raises Damaged."""
        file = f"rng-{rank:05d}-of-{self.manifest['world']:05d}.safetensors"
        if file not in self.manifest["files"]:
            return None
        opened = self._open(file)
        try:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise Damaged(f"{file}: {error}") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The trainable weights of a checkpoint by canonical name, fp32, on the CPU."""
    stored = Stored(path, json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    with stored:
        return {
            name: stored.read(name, "weight", 0, math.prod(shape)).view(shape) for name, shape in stored.shapes.items()
        }


def steps_on_disk(run_dir: Path) -> list[int]:
    """Steps with a published folder, newest first; their content is not verified."""
    folders = (run_dir / "checkpoints").glob("step-*")
    return sorted((int(path.name.removeprefix("step-")) for path in folders if path.name[5:].isdigit()), reverse=True)


def steps_before(run_dir: Path, incident: int) -> list[int]:
    """Steps with a folder from before the bad step ``incident`` (0: all), in the order in which to go back to them.

    Newest first, but that of the step right before comes last: ``incident`` was the first to compute with its weights.
    """
    steps = steps_on_disk(run_dir)
    if not incident:
        return steps
    return [step for step in steps if step < incident - 1] + [step for step in steps if step == incident - 1]
