"""Rules about two or more settings. Each rule is a small generator of findings; all findings are reported together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from conf.checks.finding import Finding
from conf.checks.reproducible import reproducible
from conf.checks.resume import allowed
from conf.checks.sources import date, tree
from conf.checks.tuning import method
from conf.schema.facts import backend_facts

if TYPE_CHECKING:
    from conf.schema import RunConfig

BYTE_ALPHABET = 256
"""Tokens of a byte-level BPE before it has learnt anything; two more are the special ones."""

PASSED_ON = (
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
)
"""ZeRO++ (Wang et al. 2023): weights kept whole within a node for the backward pass; weights and gradients that travel
in 8 and 4 bits, which makes a step depend on the number of GPUs."""


def cross_checks(cfg: RunConfig) -> list[Finding]:
    """Every broken rule of a config whose single fields are valid."""
    rules = (
        _model,
        _tokenizer,
        _zero,
        _reduction,
        _passed_on,
        _attention,
        _sharing,
        _sequence_parallel,
        method,
        date,
        _stop,
        _warmup,
        _batch,
        _deterministic,
        reproducible,
        _kernels,
        allowed,
    )
    found = [finding for rule in rules for finding in rule(cfg)]
    return found + list(tree("data.sources", cfg.data.sources))


def _model(cfg: RunConfig) -> Iterator[Finding]:
    model, keys = cfg.model, ("model.path", "model.config", "model.init")
    if model.path is None and model.config is None:
        yield Finding(keys, "model.path: missing; give a folder or hub id, or model.config with model.init=random")
    elif model.path is not None and model.config is not None:
        yield Finding(
            keys,
            f"model.path: {model.path!r} and model.config are both set; remove one of them with model.path=null, "
            "or with model.config=null model.init=pretrained model.tokenizer=null",
        )
    elif model.init == "random" and model.config is None:
        yield Finding(keys, "model.init: random needs model.config; set model.init=pretrained to use model.path")
    elif model.init == "pretrained" and model.path is None:
        yield Finding(keys, "model.init: pretrained needs model.path; set model.init=random to start from model.config")
    if model.config is not None and not isinstance(model.config.get("model_type"), str):
        yield Finding(
            ("model.config",),
            "model.config: model_type is missing; set it to the model's family, such as model_type: llama",
        )


def _tokenizer(cfg: RunConfig) -> Iterator[Finding]:
    model, smallest = cfg.model, BYTE_ALPHABET + 2
    if model.config is not None and model.path is None and model.tokenizer is None:
        yield Finding(
            ("model.tokenizer", "model.config", "model.path"),
            "model.tokenizer: missing; model.config names none: give a folder or hub id, or model.tokenizer=train",
        )
    twice = sorted({each for each in model.new_tokens if model.new_tokens.count(each) > 1})
    if twice:
        yield Finding(("model.new_tokens",), f"model.new_tokens: {', '.join(map(repr, twice))} stands there twice")
    if any(each != each.strip() or not each for each in model.new_tokens):
        yield Finding(
            ("model.new_tokens",),
            "model.new_tokens: a token is empty or begins or ends with a space; write the token alone, in quotes",
        )
    if model.tokenizer == "train" and model.vocab_size < smallest:
        yield Finding(
            ("model.vocab_size", "model.tokenizer"),
            f"model.vocab_size: got {model.vocab_size}; a trained byte-level tokenizer needs at least {smallest}",
        )


def _zero(cfg: RunConfig) -> Iterator[Finding]:
    zero = cfg.zero
    if cfg.model.dtype == "bf16" and zero.stage == 0:
        yield Finding(
            ("model.dtype", "zero.stage"),
            "zero.stage: 0 with model.dtype=bf16 makes DeepSpeed step wrongly; use zero=1, or model.dtype=fp32",
        )
    if zero.offload == "optimizer" and zero.stage == 0:
        yield Finding(
            ("zero.offload", "zero.stage"), "zero.offload: optimizer needs sharded states; use zero=1 or higher"
        )
    if zero.offload == "all" and zero.stage not in (3, "auto"):
        yield Finding(
            ("zero.offload", "zero.stage"),
            f"zero.offload: all moves parameters too, which needs zero=3 (got zero={zero.stage}); "
            "use zero=3, or zero.offload=optimizer",
        )


def _reduction(cfg: RunConfig) -> Iterator[Finding]:
    """Stages 0 and 1 hand over a gradient in fp32 and once a step, so bf16 would round it for little."""
    if cfg.zero.reduce_dtype == "fp32":
        return
    if cfg.model.dtype == "fp32":
        yield Finding(
            ("zero.reduce_dtype", "model.dtype"),
            "zero.reduce_dtype: bf16 would round the gradients of model.dtype=fp32; use zero.reduce_dtype=fp32",
        )
    elif cfg.zero.stage in (0, 1):
        yield Finding(
            ("zero.reduce_dtype", "zero.stage"),
            f"zero.reduce_dtype: bf16 is for zero=2 and zero=3, and zero={cfg.zero.stage} adds gradients in fp32 once "
            "a step; use zero.reduce_dtype=fp32, or zero=2",
        )


def _passed_on(cfg: RunConfig) -> Iterator[Finding]:
    """DeepSpeed accepts any key without a word."""
    known = ", ".join(PASSED_ON)
    for key, value in cfg.zero.deepspeed.items():
        wanted = int if key == "zero_hpz_partition_size" else bool
        if key.startswith("mics_"):
            yield Finding(
                ("zero.deepspeed",),
                f"zero.deepspeed: {key} would keep optimizer states per group of ranks, which checkpoints here do not "
                "know; zero_hpz_partition_size=GPUS_PER_NODE keeps the weights' traffic within a node",
            )
        elif key not in PASSED_ON:
            yield Finding(
                ("zero.deepspeed",),
                f"zero.deepspeed: {key} is not passed on; it takes {known}; other settings have their own keys in zero",
            )
        elif type(value) is not wanted or (wanted is int and value < 1):
            kind = "a number of ranks" if wanted is int else "true or false"
            yield Finding(("zero.deepspeed",), f"zero.deepspeed: {key} got {value!r}; it takes {kind}")
    if cfg.zero.deepspeed and cfg.zero.stage != 3:
        yield Finding(
            ("zero.deepspeed", "zero.stage"),
            f"zero.deepspeed: its keys are of stage 3 (got zero={cfg.zero.stage}); use zero=3, or remove them",
        )


def _attention(cfg: RunConfig) -> Iterator[Finding]:
    backend = cfg.attention.backend
    facts = backend_facts(backend)
    if cfg.data.pack == "exact" and facts.rows == "padded":
        yield Finding(
            ("data.pack", "attention.backend"),
            f"attention.backend: {backend} does not isolate the samples of a packed row from one another "
            "(data.pack=exact); "
            "use attention=packed, or data.pack=none",
        )
    if cfg.model.dtype not in facts.dtypes:
        yield Finding(
            ("attention.backend", "model.dtype"),
            f"attention.backend: {backend} computes in {' and '.join(facts.dtypes)} only; use attention=packed, or "
            f"model.dtype={facts.dtypes[0]}",
        )


def _sharing(cfg: RunConfig) -> Iterator[Finding]:
    """A shared prefix is computed once, so its result must be the same for every sample that shares it."""
    if cfg.data.pack == "none" or not cfg.data.share_prefix:
        return
    backend, dropout = cfg.attention.backend, getattr(cfg.tuning, "dropout", 0.0)
    facts = backend_facts(backend)
    if not facts.shares and facts.rows != "padded":  # padded rows have their own finding
        yield Finding(
            ("data.share_prefix", "attention.backend"),
            f"attention.backend: {backend} cannot let the samples of a row share a prefix (data.share_prefix=true); "
            "use attention=packed, or data.share_prefix=false",
        )
    if dropout:
        yield Finding(
            ("data.share_prefix", "tuning.dropout"),
            f"tuning.dropout: {dropout} would drop the same values for every sample that shares a prefix "
            "(data.share_prefix=true); use tuning.dropout=0, or data.share_prefix=false",
        )


def _sequence_parallel(cfg: RunConfig) -> Iterator[Finding]:
    """The slices of a row exchange data in attention only, and not every backend does that exchange."""
    key, size, tuning = "compute.sequence_parallel", cfg.compute.sequence_parallel, cfg.tuning
    if size == 1:
        return
    if tuning.FACTS.rows == "padded":
        yield Finding(
            (key, "tuning.method"),
            f"{key}: {size} slices rows of samples laid end to end, and tuning={tuning.method} needs each sample in a "
            f"padded row of its own; use another method, or {key}=1",
        )
    elif cfg.data.pack != "exact":
        yield Finding(
            (key, "data.pack"),
            f"{key}: {size} slices rows of samples laid end to end, and data.pack={cfg.data.pack} pads each sample to "
            f"a row of its own; use data.pack=exact, or {key}=1",
        )
    facts = backend_facts(cfg.attention.backend)
    if not facts.exchanges and facts.rows != "padded":  # padded rows have their own finding
        yield Finding(
            (key, "attention.backend"),
            f"attention.backend: {cfg.attention.backend} attends to the tokens it is given, and {key}={size} gives "
            f"each rank a slice of the row; use attention=packed, or {key}=1",
        )


def _stop(cfg: RunConfig) -> Iterator[Finding]:
    stop = cfg.data.stop
    kinds = [each.name for each in fields(stop)]
    given = [kind for kind in kinds if getattr(stop, kind) is not None]
    if not given:
        yield Finding(("data.stop",), f"data.stop: missing; set one of {', '.join(kinds)}, such as data.stop.epochs=3")
    elif len(given) > 1:
        yield Finding(
            ("data.stop",),
            f"data.stop: {' and '.join(given)} are set, and only one is allowed; remove the others, "
            f"such as data.stop.{given[0]}=null",
        )


def _warmup(cfg: RunConfig) -> Iterator[Finding]:
    plan, key = cfg.schedule, "schedule.warmup_steps"
    if plan.warmup_steps is not None and plan.warmup_fraction is not None:
        yield Finding(
            (key, "schedule.warmup_fraction"),
            f"{key}: {plan.warmup_steps} and warmup_fraction={plan.warmup_fraction} are both set, and one is allowed; "
            "add schedule.warmup_fraction=null (or schedule.warmup_steps=null)",
        )
    if plan.warmup_steps and plan.max_steps and plan.warmup_steps >= plan.max_steps:
        yield Finding(
            (key, "schedule.max_steps"),
            f"{key}: {plan.warmup_steps} leaves no step at the peak; keep it below schedule.max_steps={plan.max_steps}",
        )
    if plan.kind == "wsd" and (plan.warmup_fraction or 0.0) + plan.decay_fraction > 1.0:
        yield Finding(
            ("schedule.warmup_fraction", "schedule.decay_fraction"),
            f"schedule.decay_fraction: {plan.decay_fraction} plus warmup_fraction={plan.warmup_fraction} exceeds 1",
        )


def _batch(cfg: RunConfig) -> Iterator[Finding]:
    batch = cfg.batch
    if batch.micro_size != "auto" and batch.global_size != "auto" and batch.micro_size > batch.global_size:
        yield Finding(
            ("batch.micro_size", "batch.global_size"),
            f"batch.micro_size: {batch.micro_size} rows are more than batch.global_size={batch.global_size}; lower it",
        )


def _deterministic(cfg: RunConfig) -> Iterator[Finding]:
    if cfg.compute.deterministic and cfg.zero.overlap_comm:
        yield Finding(
            ("compute.deterministic", "zero.overlap_comm"),
            "compute.deterministic: true needs zero.overlap_comm=false (overlapped sums have no fixed order); "
            "debug=deterministic sets both",
        )


def _kernels(cfg: RunConfig) -> Iterator[Finding]:
    if cfg.compute.kernels == "compile" and cfg.zero.stage in (3, "auto"):
        yield Finding(
            ("compute.kernels", "zero.stage"),
            f"compute.kernels: compile does not work with zero={cfg.zero.stage}: stage 3 gathers weights inside "
            "the blocks, which torch.compile cannot do; use compute.kernels=liger, or zero=2",
        )
    if cfg.compute.kernels == "compile" and cfg.compute.sequence_parallel > 1:
        yield Finding(
            ("compute.kernels", "compute.sequence_parallel"),
            "compute.kernels: compile does not work with compute.sequence_parallel="
            f"{cfg.compute.sequence_parallel}: torch.compile cannot compile its exchange between ranks; "
            "use compute.kernels=liger",
        )
