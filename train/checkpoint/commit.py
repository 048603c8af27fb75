"""Publishing a checkpoint: every rank writes its fragments, all agree, rank 0 renames. Old or new, never a mix.

1. Rank 0 decides the temporary folder and tells the others (two ranks that derive their own paths lose data).
2. Every rank writes and fsyncs its files and hashes them. 3. The ranks exchange (ok, hashes); one failure discards all.
4. Rank 0 writes MANIFEST.json, fsyncs, renames the folder, then replaces LATEST. 5. Older ones are pruned after that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from train.checkpoint.layout import VERSION, folder_of, sha256_of, steps_on_disk
from train.distributed import Ranks

if TYPE_CHECKING:
    from train.engine import Engine  # reading a checkpoint needs no DeepSpeed


@dataclass(frozen=True)
class Published:
    path: Path
    bytes: int
    """Of all ranks' files."""
    seconds: float
    """Training stood still for so long."""


def save(
    run_dir: Path, engine: Engine, *, ranks: Ranks, attempt: int, step: int, extra: dict[str, Any], keep: int
) -> Published | str:
    """Publish the state after ``step`` steps; on any rank's failure discard it and return why. Collective.

    ``extra`` joins the MANIFEST: data cursor, counters, hashes of base and config.
    """
    began = time.perf_counter()
    final = folder_of(run_dir, step)
    temporary = ranks.broadcast(final.with_name(f".tmp-{final.name}-{attempt}"))
    fault = _made(temporary) if ranks.is_main else ""
    entry: dict[str, Any] = {}
    if not ranks.broadcast(fault):
        fault, entry = _write_rank_files(temporary, engine, ranks)
    answers = ranks.gather((fault, entry))
    fault = next((answer for answer, _ in answers if answer), "")
    if not fault and ranks.is_main:
        fault = _publish(temporary, final, [entry for _, entry in answers], engine, ranks.world, step, extra)
    fault = ranks.broadcast(fault)
    if fault:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        return fault
    if ranks.is_main:
        prune(run_dir, keep)
    size = sum(file["bytes"] for _, entry in answers for file in entry["files"].values())
    return Published(final, size, time.perf_counter() - began)


def _made(temporary: Path) -> str:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        return f"cannot create {temporary}: {error.strerror}"
    return ""


def _write_rank_files(folder: Path, engine: Engine, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    """This rank's two files, fsynced, and their part of the MANIFEST; or why it failed."""
    place = f"{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    pieces: dict[str, list[int]] = {}
    for fragment in engine.fragments():
        pieces[fragment.name] = [fragment.start, fragment.numel]
        for kind, value in {"weight": fragment.weight, **fragment.moments}.items():
            # A copy: safetensors refuses views that share storage.
            tensors[f"{fragment.name}::{kind}"] = value.detach().to("cpu", torch.float32, copy=True)
    try:
        files = {}
        for name, content in ((f"state-{place}", tensors), (f"rng-{place}", random_states(ranks))):
            save_file(content, folder / name)
            (folder / name).chmod(0o644)  # safetensors makes files for their owner alone
            _fsync(folder / name)
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error type
        return f"rank {ranks.rank} cannot write to {folder}: {error}", {}
    return "", {"files": files, "pieces": pieces, "state": f"state-{place}"}


def _publish(
    temporary: Path,
    final: Path,
    entries: list[dict[str, Any]],
    engine: Engine,
    world: int,
    step: int,
    extra: dict[str, Any],
) -> str:
    tensors: dict[str, Any] = {
        name: {"shape": list(getattr(parameter, "ds_shape", parameter.shape)), "pieces": []}
        for name, parameter in engine.parameters.items()
    }
    for entry in entries:
        for name, (start, numel) in entry["pieces"].items():
            tensors[name]["pieces"].append([entry["state"], start, numel])
    manifest = {
        "version": VERSION,
        "step": step,
        "optimizer_steps": engine.optimizer_steps,
        "world": world,
        "zero_stage": engine.stage,
        "files": {name: file for entry in entries for name, file in entry["files"].items()},
        "tensors": tensors,
        **extra,
    }
    try:
        (temporary / "MANIFEST.json").write_text(json.dumps(manifest) + "\n")
        _fsync(temporary / "MANIFEST.json")
        _fsync(temporary)
        if final.exists():  # the same step again, after a resume: the old one gives way only now
            final.rename(final.with_name(f".old-{final.name}-{time.time_ns()}"))
        temporary.rename(final)
        _fsync(final.parent)
        latest = final.parent / ".LATEST"
        latest.write_text(final.name + "\n")
        _fsync(latest)
        latest.replace(final.parent / "LATEST")
        _fsync(final.parent)
    except OSError as error:
        return f"cannot publish {final}: {error.strerror}"
    return ""


def prune(run_dir: Path, keep: int) -> None:
    """Remove what is older than the newest ``keep`` checkpoints, and leftovers; renames before it deletes."""
    for step in steps_on_disk(run_dir)[keep:]:
        path = folder_of(run_dir, step)
        path.rename(path.with_name(f".old-{path.name}"))
    sweep(run_dir)


def sweep(run_dir: Path) -> None:
    """Delete what an interrupted save or prune left behind."""
    folder = run_dir / "checkpoints"
    for left in (*folder.glob(".old-*"), *folder.glob(".tmp-*")):
        shutil.rmtree(left, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def random_states(ranks: Ranks) -> dict[str, torch.Tensor]:
    """States of Python's, numpy's, torch's and the device's generators, as tensors."""
    python = torch.tensor(random.getstate()[1], dtype=torch.int64)
    _, keys, position, *_ = np.random.get_state()
    numpy = torch.from_numpy(np.append(np.asarray(keys, dtype=np.int64), int(position)))
    states = {"python": python, "numpy": numpy, "torch": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(ranks.device)
    return states


def set_random_states(states: dict[str, torch.Tensor], ranks: Ranks) -> None:
    """The inverse of ``random_states``."""
    random.setstate((3, tuple(states["python"].tolist()), None))
    numpy = states["numpy"].numpy()
    np.random.set_state(("MT19937", numpy[:-1].astype(np.uint32), int(numpy[-1]), 0, 0.0))
    torch.set_rng_state(states["torch"])
    if "device" in states and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], ranks.device)
