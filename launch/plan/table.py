"""``python -m launch plan``: memory, time and communication of a run before it starts, in 80 columns or as JSON.

--json                    everything, for programs
--trace                   also runs the model's own code on fake tensors (a process of its own; seconds)
--sweep KEY=A,B,...       one line for every value (nodes, gpus_per_node, or any key); --plot FILE.png draws it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from conf.errors import CorralError, InternalError
from conf.safety.arguments import for_children
from conf.schema import RunConfig
from data_prep.tokenizer.growth import GROWN, growth_of
from launch.plan.limits import sentence
from launch.torchrun import child_environment
from train.plan import (
    GIB,
    Memory,
    Plan,
    batch_size,
    corpus_of,
    is_open,
    plan,
    read_model_config,
    refuse_slow_answers,
    settle,
    size_chosen,
    slice_tokens,
)

PARTS = ("weights", "grads", "optim", "gather", "activ", "logits", "rest")
COLUMNS = (*PARTS, "total", "fits")
WIDTH = 80
TRACE_S = 300.0
"""The time limit of a trace, which normally takes seconds."""


@dataclass(frozen=True)
class Answer:
    cfg: RunConfig
    """Without ``auto``."""
    found: Plan
    was_open: bool
    """Some setting was ``auto``."""
    growth: str = ""
    """What tokens that the base does not know mean for it; "" if it knows all."""
    global_size: str = ""
    """What ``batch.global_size=auto`` became and why; empty if it was not auto."""


def planned(cfg: RunConfig) -> Answer:
    """The plan of ``cfg``, its ``auto`` settings resolved for the ranks of ``cfg.cluster``."""
    settled = settle(cfg, nodes=cfg.cluster.nodes, per_node=cfg.cluster.gpus_per_node)
    model = read_model_config(cfg.model)
    growth = growth_of(cfg.model, model.get(GROWN))
    said = growth.sentence() if growth else ""
    return Answer(settled, plan(settled, model, corpus_of(cfg)), is_open(cfg), said, size_chosen(cfg, settled))


def plan_if_known(cfg: RunConfig) -> Plan | None:
    """The plan of ``cfg``; None for a run that has none, which starts all the same: ``before_start`` says why."""
    try:
        return planned(cfg).found
    except CorralError:
        return None


def before_start(cfg: RunConfig) -> str:
    """What ``launch`` prints before it starts a run: a line, and one more if its model gets new rows.

    A run also starts if the size of its model is unknown. Raises ConfigError if its answers would take too long.
    """
    try:
        answer = planned(cfg)
    except CorralError as error:
        return f"corral: {cfg.name}: no memory plan: {error}"
    found = answer.found
    refuse_slow_answers(answer.cfg, found.answers)
    at_most = "up to " if answer.global_size and found.samples_per_step is None else ""  # the corpus decides
    processes = f"{found.world} process{'es' if found.world > 1 else ''}"
    trained = "" if found.trained == found.parameters else f" ({count(found.trained)} trained)"
    return (
        f"corral: {cfg.name}: {count(found.parameters)} parameters{trained}, ZeRO-{found.stage} on {processes}, "
        f"{at_most}{found.micro_batches} micro-batch{'es' if found.micro_batches > 1 else ''} per step, "
        f"about {size(found.chosen.device)} per process"
    ) + (f"\ncorral: {answer.growth}" if answer.growth else "")


def traced(arguments: Sequence[str], supervised: float) -> dict[str, float]:
    """Peak bytes of a micro-batch by phase, and over all, from ``python -m train.trace``: torch stays out of here."""
    command = [sys.executable, "-m", "train.trace", *for_children(arguments), f"supervised={supervised}"]
    environment = {**os.environ, **child_environment(1)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TRACE_S, check=False, encoding="utf-8"
    )
    if done.returncode:
        raise InternalError(f"the trace failed: {' '.join(done.stderr.split())[-300:]}; the plan without --trace holds")
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found["phases"], "peak": found["peak"]}


def table(answer: Answer) -> str:
    """The full answer for a terminal."""
    cfg, found = answer.cfg, answer.found
    cluster, batch = cfg.cluster, cfg.batch
    model = f"{count(found.parameters)} parameters, {count(found.trained)} trained ({cfg.tuning.method})"
    machines = f"{cluster.nodes} x {cluster.gpus_per_node} processes of {cluster.gpu_memory_gib:g} GiB"
    rows_per_step = f"{batch.global_size} rows of {cfg.data.seq_len} tokens"
    chosen = f"chosen: zero={found.stage} model.recompute={found.recompute} batch.micro_size={found.micro_size}"
    head = [
        f"{cfg.name}: {model}, {cfg.model.dtype}",
        f"{machines}, recompute {found.recompute}, offload {cfg.zero.offload}",
        f"per step {rows_per_step}: {found.micro_batches} micro-batches of {batch.micro_size} per {reader(cfg)}",
        *([chosen] if answer.was_open else []),
        *textwrap.wrap(answer.growth, WIDTH),
        *textwrap.wrap(answer.global_size, WIDTH, subsequent_indent="  "),
        "",
        f"{unit_of(found)[0]} per process at its peak; grads with fp32 accumulation",
        _row("", "zero", COLUMNS),
    ]
    rows = [_memory_row(found, stage, memory, stage == found.stage) for stage, memory in found.stages.items()]
    other = [_row("", "recompute", COLUMNS)]
    other += [
        _memory_row(found, name, memory, name == found.recompute) for name, memory in found.recomputations.items()
    ]
    return "\n".join([*head, *rows, "", *other, "", *_verdict(found), "", *beside(found), "", *_time(cfg, found)])


def reader(cfg: RunConfig) -> str:
    """The processes that work on one micro-batch."""
    slices = cfg.compute.sequence_parallel
    return "process" if slices == 1 else f"{slices} processes"


def beside(found: Plan) -> list[str]:
    """The alternatives to the plan, and why they were not chosen."""
    width = max(len(option.name) for option in found.options)
    return [f"{option.name:<{width}} {size(option.memory.device):>10}  {found.why(option)}" for option in found.options]


def _time(cfg: RunConfig, found: Plan) -> list[str]:
    lines = [f"speed: {found.speed}"]
    if not isinstance(found.speed, str):
        low, high = found.speed.low * found.world, found.speed.high * found.world
        lines = [f"speed: {low:,.0f} to {high:,.0f} tokens/s on {found.world} x {cfg.cluster.gpu}"]
        lines += [f"  wider than measured: {note}" for note in found.speed.notes]
    if found.steps is not None:
        samples = f", {found.samples_per_step:,.0f} samples each" if found.samples_per_step else ""
        lines.append(f"steps: {found.steps:,} of at most {found.tokens_per_step:,} tokens{samples}")
    if found.hours is not None:
        lines.append(f"wall time: {found.hours[0]:.1f} to {found.hours[1]:.1f} hours, without evaluation")
    moved = ", ".join(f"{name} {value:g}" for name, value in found.traffic.gib().items() if value)
    lines.append(f"communication, GiB per process and step: {moved or 'none'}")
    if found.stage == 3 and found.world > cfg.cluster.gpus_per_node:
        tokens = slice_tokens(cfg, found.micro_size * cfg.data.seq_len)
        verdict = "hides under compute" if tokens >= found.hiding_tokens else "does not hide"
        lines.append(f"  ZeRO-3 hides above {found.hiding_tokens:,.0f} tokens per micro-batch; {tokens:,}: {verdict}")
    if found.answers:
        lines.append(f"answers: {found.answers.sentence}")
    lines.append(
        f"checkpoint: {size(found.checkpoint_bytes)}, {found.stall_s:.0f} s at "
        f"{cfg.cluster.storage_gib_per_s:g} GiB/s; best every {found.interval_s / 60:.0f} min"
    )
    lines += [said] if cfg.cluster.kind == "slurm" and (said := sentence(cfg, found)) else []
    lines.append(f"goodput with failures as published for 16,384 H100: {found.goodput:.1%}")
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ", drop_whitespace=True)]


def count(number: float) -> str:
    """1_235_814_400 -> 1.24 B."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.2f} {letter}"
    return str(int(number))


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.1f} MiB"


def unit_of(found: Plan) -> tuple[str, int]:
    """The unit of the table and its bytes: in GiB, the sizes of small models would be zeros."""
    return ("GiB", GIB) if found.chosen.device >= 4 * GIB else ("MiB", 2**20)


def _row(mark: str, name: str, cells: tuple[str, ...]) -> str:
    *sizes, fits = cells
    return f"{mark:1} {name:<9}" + "".join(f"{cell:>8}" for cell in sizes) + f"{fits:>5}"


def parts(memory: Memory) -> dict[str, float]:
    """Bytes on the device, by the names that tables and pictures have for them."""
    gradients, activations = memory.gradients + memory.accumulation, memory.activations + memory.passing
    rest = memory.buckets + memory.context + memory.fragmentation
    found = (memory.weights, gradients, memory.optimizer, memory.gathered, activations, memory.logits, rest)
    return dict(zip(PARTS, found, strict=True))


def _memory_row(found: Plan, name: object, memory: Memory, chosen: bool) -> str:
    fits = "yes" if found.fits(memory) else "no"
    cells = (*(f"{part / unit_of(found)[1]:.1f}" for part in (*parts(memory).values(), memory.device)), fits)
    return _row(">" if chosen else "", str(name), cells)


def _verdict(found: Plan) -> list[str]:
    chosen = found.chosen
    lines = [f"states {size(chosen.states)}, all {size(chosen.device)} per process, most at {chosen.phase}: "]
    lines[0] += "fits" if found.fits(chosen) else f"does not fit {found.gpu_memory_gib:g} GiB"
    if chosen.host:
        lines.append(f"on the host, per process: {size(chosen.host)}")
    if found.supervised == 1.0:
        lines.append("logits: upper bound, as if every token were a target; lower with a corpus")
    if not found.fits(chosen):
        ways = [f"zero={stage}" for stage, memory in found.stages.items() if found.fits(memory)]
        ways += [f"model.recompute={name}" for name, memory in found.recomputations.items() if found.fits(memory)]
        lines.append(f"would fit: {', '.join(ways)}" if ways else "more processes, offload or LoRA would be needed")
    return lines


def to_json(answer: Answer, trace: dict[str, float] | None) -> str:
    found = answer.found.to_dict() | (
        {"trace_gib": {key: value / GIB for key, value in trace.items()}} if trace else {}
    )
    found |= {"growth": answer.growth} if answer.growth else {}
    return json.dumps(found, indent=1)


def with_nodes(cfg: RunConfig, nodes: int) -> RunConfig:
    """``cfg`` on ``nodes`` nodes. A global batch with fewer rows than ranks grows to one row per rank."""
    ranks, rows = nodes * cfg.cluster.gpus_per_node, cfg.batch.global_size
    rows = max(batch_size(cfg).rows if rows == "auto" else rows, ranks)
    cluster = replace(cfg.cluster, nodes=nodes)
    return replace(cfg, cluster=cluster, batch=replace(cfg.batch, global_size=rows))


def summary(answer: Answer) -> str:
    """One sentence, as at the head of every conf/experiment/*.yaml."""
    found, cluster = answer.found, answer.cfg.cluster
    machines = f"{found.world} x {cluster.gpu_memory_gib:g} GiB"
    fits = "fits" if found.fits(found.chosen) else "does not fit"
    return f"{size(found.chosen.device)} per process at its peak, with zero={found.stage}; {fits} {machines}."
