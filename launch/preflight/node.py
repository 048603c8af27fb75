"""Runs once per node, started by launch.preflight.command: what the node finds out about itself, without torch.

Everything is looked at at once, in a thread of its own with one limit for all, because a dead file system or name
server answers never.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from conf.attempts.preflight import CLOCK, FACT, FAULT, GO, LOOKED, Order, say
from conf.compose import config_from_argv
from conf.disk.folders import own_local_folder
from conf.errors import CorralError, Unavailable, describe, leave_with_code
from conf.frozen import to_record
from launch.preflight.gpus import listed_gpus
from launch.provenance import versions
from launch.torchrun import ROOT

LOOK_S = 10.0
"""All looks of a node have this time together."""
CODE = ("conf", "data_prep", "launch", "train")


def looks(order: Order) -> dict[str, Callable[[], Any]]:
    """What is looked at by kind. Each returns the fact that is compared, or None; it raises what is wrong by itself."""
    every: dict[str, Callable[[], Any]] = {
        "run_dir": partial(free_bytes, Path(order.run_dir), order.seen),
        "gpus": partial(gpus, order.processes, needed=order.gpus),
        "code": partial(code, ROOT),
        "config": partial(config, order.arguments),
        "versions": versions,
    }
    if order.head:
        every["head"] = partial(way_to, order.head)
    if order.corpus:
        every["corpus"] = partial(corpus, Path(order.corpus))
    if "CORRAL_LOCAL_DIR" in os.environ:
        every["local"] = local
    return every


def local() -> None:
    """Raise PermissionDenied if others may write into this node's folder for caches (slurm/environment.sh)."""
    own_local_folder(Path(os.environ["CORRAL_LOCAL_DIR"]), "CORRAL_LOCAL_DIR")


def way_to(head: str) -> None:
    """Raise Unavailable if this node knows no address of ``head``, or no way there that other nodes have too."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((head, 9))  # a datagram socket sends nothing
            address = str(probe.getpeername()[0])
    except socket.gaierror as error:
        raise Unavailable(
            f"the name of the first node, {head}, does not resolve there ({error.strerror}); correct /etc/hosts or DNS"
        ) from None
    except OSError as error:
        raise Unavailable(f"it knows no way to the first node, {head} ({error.strerror}); look at its routes") from None
    # The interface of the ranks is the one that leads there, unless the user has named one.
    named = os.environ.get("SLURM_PROCID") == "0" and "GLOO_SOCKET_IFNAME" in os.environ
    if address.startswith("127.") and not named:
        raise Unavailable(
            f"the name of the first node, {head}, is {address} there, which leads back to itself; correct /etc/hosts"
        )


def free_bytes(run_dir: Path, seen: str) -> int:
    """Bytes free for us in ``run_dir``. Raises Unavailable if it cannot be written, or is not the coordinator's."""
    shared = "put run_dir on a file system that all nodes share"
    try:
        with tempfile.NamedTemporaryFile(dir=run_dir / "logs", prefix=".preflight-"):
            pass
    except OSError as error:
        raise Unavailable(f"it cannot write to run_dir={run_dir} ({error.strerror}); {shared}") from None
    if seen and not (run_dir / "logs" / seen).exists():
        raise Unavailable(f"its run_dir={run_dir} is another folder than the first node's; {shared}")
    return shutil.disk_usage(run_dir).free


def gpus(processes: int, *, needed: bool) -> list[str]:
    """The models of its GPUs, each once. Raises Unavailable for fewer than ``processes``; none is enough if not
    ``needed``, and without NVIDIA's tools torch has to find them."""
    found = listed_gpus()
    if found is None:
        return []
    if len(found) < processes and (found or needed):
        raise Unavailable(
            f"nvidia-smi lists {len(found)} GPU{'' if len(found) == 1 else 's'} and {processes} "
            f"{'was' if processes == 1 else 'were'} requested; look at nvidia-smi and dmesg there"
        )
    return sorted(set(found))


def code(root: Path) -> str:
    """Digest of the Python files that a run uses; its yaml files show in the config."""
    digest = hashlib.blake2b(digest_size=8)
    files = [path for folder in CODE for path in (root / folder).rglob("*") if path.suffix == ".py"]
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def config(arguments: list[str]) -> dict[str, str]:
    """Digest of every section of the config that this node composes. Raises ConfigError."""
    cfg, _ = config_from_argv(arguments, command="launch preflight")
    return {section: _digest(json.dumps(value, sort_keys=True)) for section, value in to_record(cfg).items()}


def corpus(folder: Path) -> str:
    """Digest of the MANIFEST and of the names and sizes of all files; empty without a MANIFEST."""
    if not (folder / "MANIFEST.json").is_file():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    sizes = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in files]
    return _digest("\n".join(sizes) + (folder / "MANIFEST.json").read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def look(every: dict[str, Callable[[], Any]]) -> None:
    """Look at everything and say what was found."""
    late = dict.fromkeys(every, True)

    def one(kind: str, work: Callable[[], Any]) -> None:
        try:
            words: tuple[str, Any] = (FACT, work())
        except CorralError as error:
            words = (FAULT, describe(error).removeprefix("corral: "))
        except OSError as error:
            words = (FAULT, f"{kind}: {error.strerror} ({error.filename})")
        if late.pop(kind, False):
            say(words[0], kind, words[1])

    threads = [threading.Thread(target=one, args=item, daemon=True) for item in every.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LOOK_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for kind in list(late):
        if late.pop(kind, False):
            say(FAULT, kind, f"its {kind} gives no answer within {LOOK_S:.0f} s; look at its file systems and services")


def main() -> NoReturn:
    say(CLOCK, time.time())
    order = Order(**json.loads(sys.stdin.readline()))
    look(looks(order))
    say(LOOKED)
    if sys.stdin.readline().strip() != GO:
        os._exit(0)  # a look that hangs is not waited for
    os.environ |= {"RANK": os.environ["SLURM_PROCID"], "WORLD_SIZE": os.environ["SLURM_NTASKS"]}
    os.environ |= {"MASTER_ADDR": order.head, "MASTER_PORT": str(order.port)}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.execv(sys.executable, [sys.executable, "-m", "train.ranks.trial"])


if __name__ == "__main__":
    leave_with_code(main)
