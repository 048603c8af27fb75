"""Prompt tuning (Lester et al. 2021): learnt embeddings stand before every sample; the model is frozen.

They start as embeddings of tokens drawn from the vocabulary (section 3.2). Sample positions follow them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.schema import PromptTuning
from train.families import Family, family
from train.loading.adapters import CONFIG
from train.tuning import _virtual
from train.tuning._folder import Folder
from train.tuning._peft import write_folder
from train.tuning._start import generator_for

FOLDER = Folder(CONFIG, "PROMPT_TUNING")


def apply(model: nn.Module, tuning: PromptTuning, family: Family, *, seed: int) -> nn.Module:
    """Hook the embeddings on. Reads rows of the embedding, which it gathers under ZeRO-3 (collective)."""
    from peft.utils.integrations import gather_params_ctx

    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    generator = generator_for(f"{_virtual.NAME}.weight", seed)
    rows = torch.randint(0, table.num_embeddings, (tuning.virtual_tokens,), generator=generator)
    with gather_params_ctx(list(table.parameters())):
        start = table.weight.detach()[rows.to(table.weight.device)].clone()
    _virtual.attach(model, start)
    model.register_forward_pre_hook(_prepend, with_kwargs=True)
    model.register_forward_hook(_cut, with_kwargs=True)
    return model


def _prepend(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Embeddings [B, V + L, H] in place of the first call's token ids [B, L]; later ones only see more behind them.

    The tokens go between the padding on the left, if there is any, and the sample, so that the distances are those of
    a row without padding (a sliding window counts them).
    """
    prompt_VH, mask = _virtual.values(model), _virtual.masked(model, kwargs)
    order, changed = _order(mask, len(prompt_VH)), dict(kwargs)
    changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), len(prompt_VH)), mask], 1).gather(1, order)
    positions = kwargs.get("position_ids")
    if positions is not None:
        changed["position_ids"] = positions + len(prompt_VH)
    if _virtual.seen(kwargs):
        return args, changed
    sample_BLH = model.get_input_embeddings()(changed.pop("input_ids"))
    both = torch.cat([prompt_VH.to(sample_BLH.dtype).expand(len(mask), -1, -1), sample_BLH], 1)
    changed["inputs_embeds"] = both.gather(1, order[:, :, None].expand_as(both))
    if positions is not None:
        before = torch.arange(len(prompt_VH), device=mask.device).expand(len(mask), -1)
        changed["position_ids"] = torch.cat([before, changed["position_ids"]], 1).gather(1, order)
    return args, changed


def _order(mask: torch.Tensor, count: int) -> torch.Tensor:
    """[B, V + L]: which of [virtual tokens, row] stands where: left padding, virtual tokens, the rest."""
    padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    place = torch.arange(count + mask.shape[1], device=mask.device).expand(len(mask), -1)
    moved = torch.where(place < padding, place + count, place - padding)
    return torch.where(place < padding + count, moved, place)


def _cut(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Logits of the sample's own positions, as the loss expects them: [B, V + L, ...] to [B, L, ...]."""
    if "inputs_embeds" in kwargs and not kwargs.get("logits_to_keep"):
        output.logits = output.logits[:, _virtual.taken(model) :]
    return output


def merge(model: nn.Module) -> nn.Module:
    """Raises ConfigError: no weight of the model can stand for tokens."""
    raise _virtual.no_plain_model("prompt")


def save(model: Any, tuning: PromptTuning, folder: Path, *, base: str) -> None:
    """An adapter folder that PEFT loads."""
    from peft import PromptTuningConfig

    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tuning.virtual_tokens,
        token_dim=model.get_input_embeddings().embedding_dim,
        num_layers=model.config.num_hidden_layers,
        num_attention_heads=model.config.num_attention_heads,
        num_transformer_submodules=1,
    )
    write_folder(config, {"prompt_embeddings": _virtual.values(model)}, folder, base=base)


def load(model: Any, folder: Path) -> nn.Module:
    """``model``, the base, with the virtual tokens of ``folder``. Raises ValueError if they are another model's."""
    tuning = PromptTuning("prompt", FOLDER.read(folder)["num_virtual_tokens"])
    return _virtual.load(apply(model, tuning, family(model.config.model_type), seed=0), folder)
