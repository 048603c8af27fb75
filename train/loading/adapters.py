"""Adapters that PEFT wrote, put on a base again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import BadData
from conf.foreign.boundary import reading

CONFIG = "adapter_config.json"
CURE = "export the adapters again, or copy their files again"


def with_adapters(model: Any, folder: Path) -> Any:
    """``model``, the base, with the adapters of ``folder``, as PEFT computes them. Raises BadData."""
    from peft import PeftModel

    with reading(folder / CONFIG, CURE):
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if settings.get("megatron_config"):
            # PEFT then imports the module that megatron_core names, whatever that is.
            raise BadData(f"{folder / CONFIG} asks for a module of its own (megatron_core), and none is run; {CURE}")
    with reading(f"the adapters in {folder}", CURE):
        return PeftModel.from_pretrained(model, str(folder))
