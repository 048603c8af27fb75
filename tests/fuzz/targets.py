"""All that is attacked."""

from __future__ import annotations

import importlib

from tests.fuzz import chat_templates, configs, corpora, models, rows, runs

TARGETS = (
    *configs.TARGETS, *rows.TARGETS, *chat_templates.TARGETS, *models.TARGETS, *corpora.TARGETS, *runs.TARGETS,
)  # fmt: skip
for name in (
    "peft", "transformers", "transformers.models.llama.modeling_llama", "transformers.generation", "train.main",
    "train.export.folder", "train.report", "train.chat.speaker", "launch.__main__", "train.tuning.lora",
    "train.families.llama",
):  # fmt: skip
    importlib.import_module(name)  # once, before the processes fork
