"""``python -m launch plan``: the memory of a run before it starts, as a table of 80 columns or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import CorralError
from conf.schema import RunConfig
from data_prep.identity import corpus_path
from train.plan import GIB, Memory, Plan, plan, read_model_config

COLUMNS = ("weights", "grads", "optim", "accum", "activ", "logits", "buffers", "total", "fits")


def planned(cfg: RunConfig) -> Plan:
    """The plan of ``cfg``; the share of supervised tokens is the corpus's once it is prepared, before that 1."""
    return plan(cfg, read_model_config(cfg.model), supervised=supervised_share(cfg))


def supervised_share(cfg: RunConfig) -> float:
    """Supervised tokens / tokens over all training splits of the prepared corpus; 1.0, an upper bound, without one."""
    manifest = Path(corpus_path(cfg)) / "MANIFEST.json"
    if not manifest.is_file():
        return 1.0
    try:
        splits = [source["splits"]["train"] for source in json.loads(manifest.read_text())["sources"].values()]
        tokens = sum(split["tokens"] for split in splits)
        return sum(split["supervised_tokens"] for split in splits) / tokens if tokens else 1.0
    except (ValueError, KeyError):  # a broken manifest is for training to name, with its code
        return 1.0


def one_line(cfg: RunConfig) -> str:
    """What ``launch`` prints before it starts a run; a model of unknown size is no reason not to start."""
    try:
        found = planned(cfg)
    except CorralError as error:
        return f"corral: {cfg.name}: no memory plan: {error}"
    processes = f"{found.world} process{'es' if found.world > 1 else ''}"
    trained = "" if found.trained == found.parameters else f" ({count(found.trained)} trained)"
    return (
        f"corral: {cfg.name}: {count(found.parameters)} parameters{trained}, ZeRO-{found.stage} on {processes}, "
        f"{found.micro_batches} micro-batch{'es' if found.micro_batches > 1 else ''} per step, "
        f"about {size(found.chosen.device)} per process"
    )


def table(cfg: RunConfig, found: Plan) -> str:
    """The full answer for a terminal."""
    share = supervised_share(cfg)
    cluster, batch = cfg.cluster, cfg.batch
    model = f"{count(found.parameters)} parameters, {count(found.trained)} trained ({cfg.tuning.method})"
    machines = f"{cluster.nodes} x {cluster.gpus_per_node} processes of {cluster.gpu_memory_gib:g} GiB"
    rows_per_step = f"{batch.global_size} rows of {cfg.data.seq_len} tokens"
    head = [
        f"{cfg.name}: {model}, {cfg.model.dtype}",
        f"{machines}, recompute {found.recompute}, offload {cfg.zero.offload}",
        f"per step {rows_per_step}: {found.micro_batches} micro-batches of {batch.micro_size} per process",
        f"a checkpoint holds {size(found.checkpoint_bytes)}",
        "",
        f"{unit_of(found)[0]} per process; states = weights + grads + optim; accum: fp32 accumulation",
        _row("", "zero", COLUMNS),
    ]
    rows = [_memory_row(found, stage, memory, stage == found.stage) for stage, memory in found.stages.items()]
    other = [_row("", "recompute", COLUMNS)]
    other += [
        _memory_row(found, name, memory, name == found.recompute) for name, memory in found.recomputations.items()
    ]
    return "\n".join([*head, *rows, "", *other, "", *_verdict(found, share)])


def count(number: float) -> str:
    """1_235_814_400 -> 1.24 B."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.2f} {letter}"
    return str(int(number))


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.1f} MiB"


def unit_of(found: Plan) -> tuple[str, int]:
    """The table's unit and its bytes: small models would read as zeros in GiB."""
    return ("GiB", GIB) if found.chosen.device >= 4 * GIB else ("MiB", 2**20)


def _row(mark: str, name: str, cells: tuple[str, ...]) -> str:
    *sizes, fits = cells
    return f"{mark:1} {name:<9}" + "".join(f"{cell:>8}" for cell in sizes) + f"{fits:>5}"


def _memory_row(found: Plan, name: object, memory: Memory, chosen: bool) -> str:
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.accumulation, memory.activations)
    sizes = (*parts, memory.logits, memory.buffers, memory.device)
    fits = "yes" if found.fits(memory) else "no"
    return _row(">" if chosen else "", str(name), (*(f"{part / unit_of(found)[1]:.1f}" for part in sizes), fits))


def _verdict(found: Plan, share: float) -> list[str]:
    chosen = found.chosen
    lines = [f"states {size(chosen.states)}, all {size(chosen.device)} per process: "]
    lines[0] += "fits" if found.fits(chosen) else f"does not fit {found.gpu_memory_gib:g} GiB"
    if chosen.host:
        lines.append(f"on the host, per process: {size(chosen.host)}")
    if share == 1.0:
        lines.append("logits: upper bound, as if every token were a target; lower with a corpus")
    if not found.fits(chosen):
        ways = [f"zero={stage}" for stage, memory in found.stages.items() if found.fits(memory)]
        ways += [f"model.recompute={name}" for name, memory in found.recomputations.items() if found.fits(memory)]
        lines.append(f"would fit: {', '.join(ways)}" if ways else "more processes, offload or LoRA would be needed")
    return lines
