"""Names of settings in other projects (transformers, TRL, axolotl, LLaMA-Factory), and the keys here."""

from __future__ import annotations

from collections.abc import Mapping

LR = "optim.lr"
EPOCHS = "data.stop.epochs"
GLOBAL = "batch.global_size"
MICRO = f"batch.micro_size (rows per rank and forward pass; {GLOBAL} is the whole step over all ranks)"
ACCUMULATION = f"{GLOBAL}: the packed rows of a step, from which accumulation follows"
SEQ_LEN = "data.seq_len"
SOURCE = "data.sources, such as 'data.sources={mine: {format: alpaca, path: FILE}}'"
HELD_OUT = "data.sources.NAME.validation_fraction"
DTYPE = "model.dtype=bf16 or fp32"
SCHEDULE = "schedule=cosine, linear, constant or wsd"
FOUR_BITS = "tuning=lora tuning.quantize=nf4"

NAMES: Mapping[str, str] = {
    "learning_rate": LR, "learningrate": LR, "peak_lr": LR, "max_lr": LR,
    "lr_scheduler": SCHEDULE, "lr_scheduler_type": SCHEDULE, "scheduler": SCHEDULE,
    "min_lr": "schedule.min_ratio, a share of the peak", "cosine_min_lr_ratio": "schedule.min_ratio",
    "warmup_ratio": "schedule.warmup_fraction", "warmup": "schedule.warmup_fraction or schedule.warmup_steps",
    "max_grad_norm": "optim.clip", "gradient_clipping": "optim.clip", "grad_clip": "optim.clip",
    "adam_beta1": "optim.betas", "adam_beta2": "optim.betas", "adam_epsilon": "optim.eps", "optimizer": "optim=adamw",
    "epochs": EPOCHS, "num_epochs": EPOCHS, "num_train_epochs": EPOCHS, "n_epochs": EPOCHS,
    "steps": "schedule.max_steps", "num_steps": "schedule.max_steps", "max_train_steps": "schedule.max_steps",
    "batch_size": f"{GLOBAL} (the whole step, in packed rows) or batch.micro_size (one forward pass)",
    "train_batch_size": GLOBAL, "global_batch_size": GLOBAL, "effective_batch_size": GLOBAL,
    "per_device_train_batch_size": MICRO, "per_device_batch_size": MICRO, "micro_batch_size": MICRO,
    "per_device_eval_batch_size": "evaluation.batch_size", "eval_batch_size": "evaluation.batch_size",
    "gradient_accumulation_steps": ACCUMULATION, "grad_accum": ACCUMULATION, "accumulate_grad_batches": ACCUMULATION,
    "max_length": SEQ_LEN, "max_seq_length": SEQ_LEN, "max_seq_len": SEQ_LEN, "sequence_len": SEQ_LEN,
    "sequence_length": SEQ_LEN, "seq_length": SEQ_LEN, "cutoff_len": SEQ_LEN, "block_size": SEQ_LEN,
    "model_max_length": SEQ_LEN, "context_length": SEQ_LEN,
    "output_dir": "run_dir", "out_dir": "run_dir", "save_dir": "run_dir", "logging_dir": "run_dir",
    "run_name": "name", "experiment_name": "name", "wandb_run_name": "name",
    "save_steps": "checkpoint.every_steps", "save_every": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep", "save_strategy": "checkpoint.every_steps",
    "resume_from_checkpoint": "resume=auto, which continues what is in run_dir",
    "auto_resume_from_checkpoints": "resume=auto",
    "eval_steps": "evaluation.every_steps", "eval_strategy": "evaluation.every_steps",
    "evaluation_strategy": "evaluation.every_steps", "evals_per_epoch": "evaluation.every_steps",
    "val_set_size": HELD_OUT, "validation_split": HELD_OUT, "test_size": HELD_OUT, "eval_dataset": HELD_OUT,
    "logging_steps": "tracker.log_every", "report_to": "tracker=wandb or jsonl", "use_wandb": "tracker=wandb",
    "wandb_project": "tracker.project", "wandb_mode": "tracker.wandb",
    "bf16": DTYPE, "fp16": DTYPE, "tf32": DTYPE, "torch_dtype": DTYPE, "mixed_precision": DTYPE, "precision": DTYPE,
    "gradient_checkpointing": "model.recompute=none, selective or full", "activation_checkpointing": "model.recompute",
    "use_gradient_checkpointing": "model.recompute",
    "model_name_or_path": "model.path", "model_name": "model.path", "base_model": "model.path",
    "model_id": "model.path", "pretrained_model_name_or_path": "model.path", "checkpoint_path": "model.path",
    "tokenizer_name": "model.tokenizer", "tokenizer_name_or_path": "model.tokenizer",
    "model_revision": "model.revision",
    "finetuning_type": "tuning=full or lora", "peft_type": "tuning=lora", "adapter": "tuning=lora",
    "peft": "tuning=lora", "use_peft": "tuning=lora", "use_lora": "tuning=lora", "method": "tuning=full or lora",
    "lora_r": "tuning.rank, with tuning=lora", "lora_rank": "tuning.rank, with tuning=lora", "r": "tuning.rank",
    "lora_alpha": "tuning.alpha, with tuning=lora", "lora_dropout": "tuning.dropout, with tuning=lora",
    "lora_target": "tuning.targets, with tuning=lora", "lora_target_modules": "tuning.targets, with tuning=lora",
    "target_modules": "tuning.targets", "lora_target_linear": "tuning.targets=family",
    "lora_modules_to_save": "tuning.modules_to_save", "use_rslora": "tuning.scaling=sqrt_rank",
    "use_dora": "tuning.variant=dora", "peft_use_dora": "tuning.variant=dora",
    "peft_use_rslora": "tuning.scaling=sqrt_rank",
    "load_in_4bit": FOUR_BITS, "quantization_bit": FOUR_BITS, "bnb_4bit_quant_type": FOUR_BITS, "qlora": FOUR_BITS,
    "load_in_8bit": f"{FOUR_BITS}; 8 bits are not here", "freeze_layers": "tuning.freeze, with tuning=full",
    "dataset": SOURCE, "datasets": SOURCE, "dataset_name": SOURCE, "dataset_path": SOURCE, "dataset_dir": SOURCE,
    "train_file": SOURCE, "data_path": SOURCE, "train_data": SOURCE, "data_files": SOURCE, "sources": SOURCE,
    "validation_file": HELD_OUT, "max_samples": "data.sources.NAME.rows", "max_train_samples": "data.sources.NAME.rows",
    "prompt_template": "data.sources.NAME.template", "dataset_text_field": "data.sources.NAME.fields",
    "packing": "data.pack=exact or none", "sample_packing": "data.pack=exact or none",
    "pad_to_sequence_len": "data.pack=none", "shuffle_seed": "seed", "random_seed": "seed", "data_seed": "seed",
    "preprocessing_num_workers": "data.num_proc", "dataset_num_proc": "data.num_proc", "num_workers": "data.num_proc",
    "dataset_prepared_path": "data.prepared", "cache_dir": "data.cache",
    "flash_attention": "attention=flash2", "flash_attn": "attention=flash2",
    "use_flash_attention_2": "attention=flash2",
    "attn_implementation": "attention=auto, packed, flash2 or sdpa", "sdp_attention": "attention=sdpa",
    "deepspeed": "zero=0, 1, 2 or 3", "zero_stage": "zero=0, 1, 2 or 3", "fsdp": "zero=3, which shards as FSDP does",
    "num_gpus": "cluster.gpus_per_node", "gpus": "cluster.gpus_per_node", "n_gpus": "cluster.gpus_per_node",
    "nproc_per_node": "cluster.gpus_per_node", "num_processes": "cluster.gpus_per_node", "nnodes": "cluster.nodes",
    "num_nodes": "cluster.nodes", "torch_compile": "compute.kernels=compile",
    "use_liger_kernel": "compute.kernels=liger",
    "liger_kernel": "compute.kernels=liger", "label_smoothing_factor": "objective.label_smoothing",
    "max_new_tokens": "evaluation.max_new_tokens", "predict_with_generate": "evaluation.generate_rows",
    "sequence_parallel_size": "compute.sequence_parallel", "context_parallel_size": "compute.sequence_parallel",
}  # fmt: skip
"""A name elsewhere -> the key or choice here. Names that are also fields here are found without this table."""

VALUES: Mapping[tuple[str, str], str] = {
    ("tuning.targets", "all-linear"): "all linear layers of the blocks are tuning.targets=family",
    ("tuning.targets", "all_linear"): "all linear layers of the blocks are tuning.targets=family",
    ("tuning.targets", "all"): "all linear layers of the blocks are tuning.targets=family",
    ("tuning.quantize", "nf8"): "8 bits are not here: tuning.quantize=nf4",
    ("tuning.quantize", "int4"): "4 bits are tuning.quantize=nf4",
    ("tuning.quantize", "4bit"): "4 bits are tuning.quantize=nf4",
    ("model.dtype", "bfloat16"): "it is model.dtype=bf16",
    ("model.dtype", "float32"): "it is model.dtype=fp32",
    ("model.dtype", "fp16"): "half precision is model.dtype=bf16 here: it needs no scaling of the loss",
    ("model.dtype", "float16"): "half precision is model.dtype=bf16 here: it needs no scaling of the loss",
    ("model.dtype", "auto"): "half precision is model.dtype=bf16, exact sums model.dtype=fp32",
    ("zero.offload", "cpu"): "it is zero.offload=optimizer or, with zero=3, zero.offload=all",
    ("schedule.kind", "constant_with_warmup"): "it is schedule.kind=constant with schedule.warmup_fraction=0.03",
    ("attention.backend", "flash_attention_2"): "it is attention=flash2",
    ("attention.backend", "eager"): "it is attention=sdpa with data.pack=none",
}
"""(setting, value as other projects write it) -> the way to say it here."""


def key_for(name: str) -> str:
    """The key here of a setting that other projects call ``name``; empty if none is known."""
    return NAMES.get(name.lower().replace("-", "_"), "")


def value_for(key: str, value: object) -> str:
    """A sentence about a value that other projects have for ``key``; empty if none is known."""
    return VALUES.get((key, str(value).lower()), "")
