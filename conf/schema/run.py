"""Every setting of a run except its data and tuning: the type, the unit, and the reason for the default."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from conf.schema.data import DataConfig
from conf.schema.fields import STRICT, Also, Count, Fraction, Name, Positive, PositiveFloat, Processes, Rows, Tokens
from conf.schema.methods import Tuning
from conf.schema.objectives import BY_KIND, Objective, SftObjective


def _no_boolean(value: Any) -> Any:
    """Python's True equals 1, so a literal of integers would take what yaml read as a boolean."""
    if isinstance(value, bool):
        raise ValueError("a boolean")
    return value


def _when(value: Any) -> Any:
    """``always`` for true and ``never`` for false: what earlier releases wrote into run.yaml."""
    return value if not isinstance(value, bool) else "always" if value else "never"


def _keys(value: Any) -> Any:
    """``optim.lr,optim.betas`` as a list."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    path: str | None = None
    """Local folder or hub id of a Hugging Face causal language model. Exactly one of ``path`` and ``config``."""
    config: dict[str, Any] | None = None
    """A Hugging Face config as a mapping (with ``model_type``), for a model that starts from random weights."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` needs ``config``; the weights follow from ``seed`` alone, whatever the number of ranks."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute dtype. bf16 keeps fp32 master weights and fp32 gradient accumulation; fp32 is exact and slow."""
    recompute: Literal["none", "selective", "full", "auto"] = "none"
    """Activation checkpointing: none, every second block (selective), every block (full); auto: the least that fits
    ``cluster.gpu_memory_gib``."""
    tokenizer: str | None = None
    """Folder or hub id; ``train`` learns a byte-level BPE from the corpus itself. Default: ``model.path``."""
    vocab_size: Tokens = 2048
    """Size of a trained tokenizer, in tokens; only read with ``tokenizer: train``."""
    new_tokens: list[str] = Field(default_factory=list)
    """Special tokens that the tokenizer gets behind its own, such as <|im_start|>. Where the base has no row for a
    token, or its row is new, embedding and head grow to a multiple of 64 rows and are trained whole, with adapters
    too. Part of the corpus's identity."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of ``path``; None is the hub's default branch."""
    trust_remote_code: bool = False
    """Run Python code that the folders of ``path`` and ``tokenizer`` bring (``auto_map``). It can do all that you can,
    so look at it first. false: none of it runs, whatever stands on standard input."""


@dataclass(frozen=True, config=STRICT)
class AttentionConfig:
    backend: Literal["auto", "packed", "flash2", "flash3", "flash4", "sdpa"] = "auto"
    """auto takes the best that passes the start-up self-test on this machine and says which."""


@dataclass(frozen=True, config=STRICT)
class ZeroConfig:
    stage: Annotated[Literal[0, 1, 2, 3, "auto"], BeforeValidator(_no_boolean)] = 2
    """What is sharded over the ranks: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters; auto: the fastest
    that fits ``cluster.gpu_memory_gib``."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """To host memory: optimizer states, or (stage 3) optimizer states and parameters."""
    bucket_elements: Positive = 50_000_000
    """Elements per reduce and all-gather bucket, at most: no more than are trained."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """In which gradients travel and are added up over the ranks. bf16 is for stages 2 and 3 with ``model.dtype=bf16``:
    half the traffic, and every addition rounded to 8 bits, so that the error grows with the ranks. Gradients that
    travel in 4 bits (zero_quantized_gradients) do not read it."""
    overlap_comm: bool = True
    persistence_threshold: Count = 100_000
    """Stage 3: parameters with fewer elements stay whole on every rank."""
    prefetch_elements: Count = 50_000_000
    """Stage 3: elements gathered ahead of their turn, at most: no more than one block of the model has."""
    max_live_parameters: Positive = 1_000_000_000
    """Stage 3: elements that are whole at once, at most."""
    deepspeed: dict[str, int | bool] = Field(default_factory=dict)
    """Stage 3: keys of DeepSpeed's own zero_optimization section, passed on as they are (conf/checks/rules.py)."""


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    name: Literal["adamw"] = "adamw"
    lr: Annotated[PositiveFloat, Also("auto")] = 2e-5
    """Peak learning rate. auto, or not set: the tuning method's own (``FACTS.lr`` in conf/schema/methods.py)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled (Loshchilov and Hutter 2019); not applied to vectors (norms, biases)."""
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95]
    )
    eps: PositiveFloat = 1e-8
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    max_steps: Count = 0
    """Optimizer steps; 0: as many as ``data.stop`` gives."""
    warmup_steps: Count | None = None
    warmup_fraction: Fraction | None = None
    """Share of all steps. At most one of the two warmups is set; neither means none."""
    min_ratio: Fraction = 0.0
    """The learning rate that the decay reaches after the last step, as a share of the peak."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """wsd only: share of the steps, at the end, that decay linearly."""


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    global_size: Rows | Literal["auto"] = "auto"
    """Packed rows per optimizer step, over all ranks. Accumulation follows; the last slots may be empty rows. auto:
    from the corpus alone, so the same for any number of ranks (train/plan/global_size.py says how)."""
    micro_size: Rows | Literal["auto"] = 1
    """Rows per rank and forward pass; auto: the most that fit and still gain."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    every_steps: Count | Literal["auto"] = 0
    """0: only at the end. auto: as often as loses least (Young 1974), from the stall of the first one, which is saved
    after ten steps."""
    every_minutes: Annotated[float, Field(ge=0.0)] = 0.0
    """Minutes by the first rank's clock since the last one began, whichever comes first; 0: steps alone count."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Verified checkpoints kept; the last two are never touched."""
    background: Annotated[Literal["auto", "always", "never"], BeforeValidator(_when)] = "auto"
    """Write while training goes on, from a copy in host memory. auto: where the hosts have room for the copy; always:
    without asking; never: training waits until a checkpoint is published. yaml's true is always, its false never."""
    copy_to: str | None = None
    """Folder or URL (s3://, gs://, file://, ...) in which ``NAME/`` gets a copy of every published checkpoint while
    training goes on; a run whose run_dir holds none continues from there. None: no copies."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    every_steps: Count = 0
    """0: never during training."""
    at_start: bool = False
    """Also before the first step, so that a report can say before and after."""
    at_end: bool = True
    max_rows: Count = 512
    """Held-out rows per source for the loss; 0: all."""
    generate_rows: Count = 8
    """Held-out rows per source that are answered and scored (exact match, ROUGE-L); 0: none."""
    max_new_tokens: Tokens = 128
    batch_size: Rows = 16
    """Rows that are answered at once."""
    sources: dict[Name, str] = Field(default_factory=dict)
    """Further prepared corpora by name, each a folder or a URL; their validation splits are evaluated too."""


@dataclass(frozen=True, config=STRICT)
class TrackerConfig:
    wandb: Literal["online", "offline", "disabled"] = "online"
    """online without an API key on this machine becomes offline, and says so."""
    project: str = "corral"
    group: str | None = None
    log_every: Positive = 1
    """Steps between two lines of metrics."""
    profile_steps: list[Positive] = Field(default_factory=list)
    """Steps whose operators and memory rank 0 traces into run_dir/profile (debug=profile); a traced step is slower."""


@dataclass(frozen=True, config=STRICT)
class ComputeConfig:
    targets_only_head: bool = True
    """Logits only where there is a target: the same loss and gradients, less memory and time."""
    kernels: Literal["none", "liger", "compile"] = "none"
    """Fused kernels for norms, rotary positions and activations on GPUs: Liger's package, or torch.compile's (the first
    step waits a minute for it; not with zero=3)."""
    deterministic: bool = False
    """Bitwise repeatable kernels; slower. The start of a run proves them, or ends it."""
    reproducible: bool = False
    """The same bits on any number of ranks: gradients are added up in the order of the micro-batches. Needs
    ``deterministic``, zero=2 or 3 and a fixed ``batch.micro_size``; on CPUs ``threads`` too."""
    threads: Count = 0
    """CPU threads per process; 0: cores / processes on the machine."""
    sequence_parallel: Positive = 1
    """Consecutive ranks that share every row, each on its slice of the tokens and, inside attention, its share of the
    heads: for documents longer than one GPU holds. Divides the ranks and the model's query heads. 1: none."""


@dataclass(frozen=True, config=STRICT)
class WatchdogConfig:
    seconds: Count = 30
    """A step without progress for this long, and for three times the 99th percentile of the last steps, is a hang: the
    ranks are ended with 76 and their stacks kept. More for file systems that pause longer; 0: nothing is a hang, as a
    debugger needs it. Ranks that die are noticed all the same."""


@dataclass(frozen=True, config=STRICT)
class GuardConfig:
    """What happens to a step whose numbers are bad; docs/reliability.md has the rules. All is known before the update,
    so every action but ``warn`` leaves the weights as they are."""

    loss: Literal["warn", "skip", "rollback", "stop"] = "warn"
    """A loss far above those of the last steps. warn changes no number of a run; skip: no update; rollback: no update,
    and after ``patience`` such steps back to the last good checkpoint; stop: ends with 70."""
    grad_norm: Literal["warn", "skip", "rollback", "stop"] = "warn"
    """The same for the global gradient norm before clipping."""
    non_finite: Literal["skip", "rollback", "stop"] = "rollback"
    """A loss or gradient that is not finite never becomes an update."""
    threshold: PositiveFloat = 10.0
    """How far above the median of the last steps a spike is, in robust standard deviations."""
    window: Annotated[int, Field(ge=10)] = 100
    """Steps that a new one is compared with, and among which refused updates are counted."""
    patience: Positive = 10
    """Refused updates within ``window`` before the run goes back or ends; and the steps without a fault that end an
    incident."""
    max_rollbacks: Count = 3
    """How often a run goes back; 0: never."""


@dataclass(frozen=True, config=STRICT)
class ClusterConfig:
    kind: Literal["local", "slurm"] = "local"
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    gpus_per_node: Processes = 1
    """Processes per node; on a machine without GPUs, CPU processes."""
    gpu_memory_gib: PositiveFloat = 80.0
    """Memory of one GPU, for ``plan`` and for settings that are ``auto``."""
    gpu: Literal["h100", "h200", "a100"] = "h100"
    """For ``plan``'s speed."""
    node_gbit_per_s: PositiveFloat = 3200.0
    """Network of one node, all its cards together (8 x 400), for ``plan``."""
    storage_gib_per_s: PositiveFloat = 2.0
    """What all ranks together write to the run's file system, for ``plan``'s checkpoint stall: measure yours."""
    min_nodes: Count = 0
    """SLURM starts the run with this many of its nodes, or more, and grows it back when it is requeued; 0: with all."""
    partition: str | None = None
    cpu_partition: str | None = None
    """Where a corpus is prepared, without GPUs; null: in ``partition``."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool | None = None
    """Nodes for this job alone, with all CPUs and memory; null: where it takes all GPUs of a node."""
    cpus_per_gpu: Count = 0
    """CPUs beside each GPU, or for each process without GPUs; 0: the GPUs' share of their node."""
    mem: str | None = None
    """Memory per node in SLURM's words, e.g. 400G; null: the GPUs' share of their node."""
    mail: str | None = None
    """Address that SLURM writes to when the job ends, fails or is requeued."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell before everything else in a job, e.g. module load cuda/12.8."""
    env_file: str | None = None
    """File of NAME=value lines for the job's environment."""
    container: list[str] = Field(default_factory=list)
    """Words before every python of a job, e.g. [apptainer, exec, --nv, corral.sif]; the host needs no Python then."""
    srun: list[str] = Field(default_factory=list)
    """Further options of the srun that trains, e.g. [--container-image=corral.sqsh]."""
    sbatch: list[str] = Field(default_factory=list)
    """Further options of sbatch, after all others."""
    snapshot: bool = False
    """Jobs run a copy of the code as it is now, in run_dir/code: edits while they wait or restart change nothing."""
    at_once: Count = 0
    """Runs of a sweep (-m) that SLURM may run at a time; 0: as many as fit."""
    time: str | None = None
    """SLURM time limit, e.g. "12:00:00"."""
    signal_seconds: Count = 0
    """SLURM asks the run to stop this long before the time limit; 0: for twice a step and a save of the plan and a
    minute. With plain sbatch the option --signal=B:USR1@SECONDS decides (300), and this says what it is."""
    max_restarts: Count = 3
    """Restarts that together gain fewer than 5 steps before the launcher gives up."""


@dataclass(frozen=True, config=STRICT)
class ResumeConfig:
    mode: Literal["auto", "never", "must"] = "auto"
    """auto: continue from run_dir's last good checkpoint; never: refuse a used run_dir; must: refuse a fresh one."""
    allow: Annotated[list[str], BeforeValidator(_keys)] = Field(default_factory=list)
    """Settings, such as optim.lr, that may have changed since the checkpoint though they change what is computed; a
    section (optim) is all of its settings. conf/schema/resuming.py says which need it. Also words between commas."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    name: Name
    model: ModelConfig
    data: DataConfig
    tuning: Annotated[Tuning, Field(discriminator="method")]
    attention: AttentionConfig
    zero: ZeroConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    tracker: TrackerConfig
    compute: ComputeConfig
    cluster: ClusterConfig
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    objective: Annotated[Objective, BY_KIND] = Field(default_factory=SftObjective)
    seed: Count = 0
    run_dir: str = ""
    """Folder of everything the run writes. The root yaml makes it ``outputs/${name}``."""
    resume: ResumeConfig = Field(default_factory=ResumeConfig)


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars that JSON can hold; ``validate`` gives the same config back."""
    return asdict(cfg)
