"""``python -m launch preflight experiment=NAME``: are the nodes fit for the run? Starts nothing.

It looks at this machine, or, behind slurm/preflight.sh, at all nodes of a SLURM job. slurm/train.sh has that done
before every start of a run; there the verdict becomes the record of the attempt, and bad nodes are written down for the
requeue, which leaves them out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from conf.attempts.preflight import DONE, LOOKED, READY, Order
from conf.compose import config_from_argv
from conf.durable import opened
from conf.errors import ConfigError, CorralError
from conf.exits import LOST_PEER, ExitRecord, write_rank_exit
from conf.safety.texts import for_terminal
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.staging import is_remote
from launch.plan.table import planned
from launch.preflight.crew import Crew, this_machine
from launch.preflight.links import judged, summary
from launch.preflight.verdict import Fault, Node, look_at, not_met, silent, trials
from launch.restarts import newest_checkpoint
from launch.run_dir import make_logs

KEYS = {
    "attempt": "number of the attempt that begins (slurm/train.sh gives it)",
    "nodes": "the first node of the job and the others; their words come from stdin (slurm/preflight.sh)",
}


def preflight(arguments: Sequence[str]) -> int:
    """Look at the nodes, say what was found, and return the exit code: 0, or that of the fault."""
    began = time.monotonic()
    cfg, own = config_from_argv(arguments, command="launch preflight", extra=KEYS)
    if not own.get("attempt", "0").isdecimal():
        raise ConfigError(f"attempt={own['attempt']}: not a whole number of 0 or more")
    run_dir = Path(cfg.run_dir).absolute()
    seen = make_logs(run_dir) / f".preflight-{secrets.token_hex(8)}"
    opened(seen, "xb").close()
    try:
        with asked(own.get("nodes", "")) as found:
            names = found.names
            rest = [word for word in arguments if word.partition("=")[0] not in KEYS]
            found.send(order(cfg, rest, names, seen.name).to_line())
            faults = inquire(found, cfg)
    finally:
        seen.unlink(missing_ok=True)
    took = f"in {time.monotonic() - began:.1f} s"
    if not faults:
        measured = f"; {summary(found.links, found.together)}" if found.together else ""
        those = f"{len(names)} nodes are" if len(names) > 1 else f"{names[0]} is"
        tell(f"{those} fit, {took}{measured}")
        return 0
    for fault in faults:
        tell(str(fault))
    tell(f"not fit, {took}")
    code = next((fault.code for fault in faults if not fault.nodes), LOST_PEER)
    if "attempt" in own:
        note(run_dir, int(own["attempt"]), code, faults)
    return code


def asked(nodes: str) -> contextlib.AbstractContextManager[Crew]:
    """The crew of the nodes behind stdin and stdout, or that of this machine."""
    return contextlib.nullcontext(Crew(nodes.split(","), sys.stdin, sys.stdout)) if nodes else this_machine()


def tell(text: str) -> None:
    print(f"corral: preflight: {for_terminal(text)}", file=sys.stderr, flush=True)


def inquire(found: Crew, cfg: RunConfig) -> list[Fault]:
    """The faults of the nodes, as soon as there is one: first what costs nothing, then what needs torch."""
    needed = bytes_to_come(cfg)
    late = found.wait(LOOKED)
    faults = [*look_at(present(found, late), needed), *silent(late, found.names)]
    if faults or len(found.names) == 1:
        return faults
    late = found.go_on(READY)
    faults = [*trials(present(found, late), processes(cfg), gpus=has_gpus()), *silent(late, found.names)]
    if faults:
        return faults
    late = found.go_on(DONE)
    faults = not_met(found.nodes, found.absent) or judged(found.links, found.names[0])
    return faults or silent(late, found.names)


def present(found: Crew, late: Sequence[str]) -> dict[str, Node]:
    return {name: node for name, node in found.nodes.items() if name not in late}


def order(cfg: RunConfig, arguments: Sequence[str], names: Sequence[str], seen: str) -> Order:
    return Order(
        arguments=[*arguments],
        run_dir=str(Path(cfg.run_dir).absolute()),
        seen=seen,
        corpus="" if is_remote(cfg.data.prepared) else str(Path(corpus_path(cfg)).absolute()),
        head=head(names) if len(names) > 1 else "",
        port=int(os.environ.get("CORRAL_PORT") or _free_port()),
        processes=processes(cfg),
        gpus=has_gpus(),
    )


def head(names: Sequence[str]) -> str:
    """The address of the first node: slurm/train.sh has one from SLURM where the name does not resolve."""
    return os.environ.get("CORRAL_HEAD") or names[0]


def processes(cfg: RunConfig) -> int:
    return int(os.environ.get("CORRAL_NPROC") or cfg.cluster.gpus_per_node)


def has_gpus() -> bool:
    """Whether SLURM was asked for GPUs: in a job by what it gave, beside one (salloc) by the request, ``h100:8``."""
    given = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_GPUS_PER_NODE") or "0"
    return given.rpartition(":")[2] != "0"


def bytes_to_come(cfg: RunConfig) -> int:
    """Bytes that the run's checkpoints will take beside those that are there; 0 if their size is unknown."""
    try:
        size = planned(cfg).found.checkpoint_bytes
    except CorralError:
        return 0
    there = len(list(Path(cfg.run_dir).glob("checkpoints/step-*/MANIFEST.json")))
    return size * max(1, cfg.checkpoint.keep + 1 - there)


def note(run_dir: Path, attempt: int, code: int, faults: Sequence[Fault]) -> None:
    """Make the verdict the record of the attempt's first rank, and list the bad nodes for the requeue."""
    reason = f"preflight: {'; '.join(map(str, faults))}"
    bad = [node for fault in faults for node in fault.nodes]
    hint = f"have {', '.join(dict.fromkeys(bad))} repaired" if bad else "correct it and submit the same command again"
    record = ExitRecord(code, reason, newest_checkpoint(run_dir), hint, attempt)
    write_rank_exit(run_dir, 0, record, own=code == LOST_PEER)
    if bad and code == LOST_PEER and "SLURM_JOB_ID" in os.environ:
        with opened(run_dir / "exit" / f"bad-nodes-{os.environ['SLURM_JOB_ID']}", "ab") as stream:
            stream.write("".join(f"{node}\n" for node in dict.fromkeys(bad)).encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
