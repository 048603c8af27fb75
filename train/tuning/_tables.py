"""The embedding and the head as tables with a row per token: new rows, and training them beside a method's own weights.

A parameter-efficient method trains both whole where a model has new rows, in place, as LoRA's ``modules_to_save`` does.
PEFT's ``trainable_token_indices`` would train the new rows alone, but its layer reads the table outside of any module's
call, where ZeRO-3 has not gathered it, and its head is no plain linear layer, whose logits are never all alive at once.

Shape suffixes: V rows, H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from conf.errors import ConfigError, MissingInput

FILE = "embeddings.safetensors"
"""Trained tables in the folder of a method whose own files have no place for them."""
CHUNK = 8192
"""Rows that are summed at once: in fp64, so that the mean does not depend on the number of threads."""


def tables(model: Any) -> list[nn.Module]:
    """The embedding, and the head if it is another module than that."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [table for index, table in enumerate(found) if table is not None and table not in found[:index]]


def give_rows(model: Any, rows: int, new: Sequence[int] = ()) -> None:
    """Give embedding and head ``rows`` rows: a copy of the first ones, or all and further ones behind them.

    The further rows and those of ``new`` become the mean of all others. The same on every rank; collective under
    ZeRO-3, where the tables are whole on every rank until the engine shards them again.
    """
    from peft.utils.integrations import gather_params_ctx

    if rows == model.config.vocab_size and not new:
        return
    made: dict[int, nn.Parameter] = {}
    for table in tables(model):
        for name, old in list(table.named_parameters(recurse=False)):
            if id(old) not in made:  # a tied weight once
                with gather_params_ctx([old]):
                    made[id(old)] = nn.Parameter(_resized(old.detach(), rows, new), requires_grad=old.requires_grad)
            setattr(table, name, made[id(old)])
        setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", rows)
    before, model.config.vocab_size = model.config.vocab_size, rows
    for module in model.modules():
        if getattr(module, "vocab_size", None) == before:
            module.vocab_size = rows


def _resized(old_VH: torch.Tensor, rows: int, new: Sequence[int]) -> torch.Tensor:
    """A table [V, H], or a bias [V]."""
    count = len(old_VH)
    inside = [index for index in new if index < min(count, rows)]
    made = old_VH.new_empty(rows, *old_VH.shape[1:])
    made[:count] = old_VH[:rows]
    if rows > count or inside:
        total = torch.stack([part.double().sum(0) for part in torch.split(old_VH, CHUNK)]).sum(0)
        mean = ((total - old_VH[inside].double().sum(0)) / (count - len(inside))).to(old_VH.dtype)
        made[count:] = mean
        made[inside] = mean
    return made


def are_trained(model: Any) -> bool:
    """Whether embedding and head are trainable, with all they hold."""
    return all(parameter.requires_grad for table in tables(model) for parameter in table.parameters(recurse=False))


def train(model: Any) -> None:
    """Make embedding and head trainable. Raises ConfigError if a method has put something of its own in their place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for table in tables(model):
        if isinstance(table, BaseTunerLayer):
            raise ConfigError(
                "tuning.targets: new tokens train embedding and head whole, and the head has an adapter too; take it "
                "out of tuning.targets"
            )
        table.requires_grad_(True)


def _named(model: Any) -> dict[str, nn.Parameter]:
    """Parameters of the tables by their names in the transformers model, tied ones under each of them."""
    plain = getattr(model, "get_base_model", lambda: model)()
    places = {id(module): name for name, module in plain.named_modules()}
    return {
        f"{places[id(table)]}.{name}": parameter
        for table in tables(plain)
        for name, parameter in table.named_parameters(recurse=False)
    }


def save_beside(model: Any, folder: Path) -> None:
    """Write trained tables into ``folder`` unless what the method wrote has them."""
    trained = {name: value for name, value in _named(model).items() if value.requires_grad}
    if trained and rows_in(model, folder) is None:
        # Copies: safetensors refuses tensors that share storage, as tied weights do.
        plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in trained.items()}
        save_file(plain, folder / FILE, metadata={"format": "pt"})


def rows_in(model: Any, folder: Path) -> int | None:
    """Rows of the tables that an adapter folder holds; None if it holds none."""
    for _, shape in _stored(model, folder):
        return shape[0]
    return None


def _stored(model: Any, folder: Path) -> Iterator[tuple[str, list[int]]]:
    names = tuple(_named(model))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key.endswith(names):
                    yield key, opened.get_slice(key).get_shape()


def load_beside(model: Any, folder: Path) -> None:
    """Copy what ``save_beside`` wrote into ``model``. Raises MissingInput if the tables are another model's."""
    if not (folder / FILE).is_file():
        return
    own, saved = _named(model), load_file(folder / FILE)
    if any(name not in own or own[name].shape != value.shape for name, value in saved.items()):
        raise MissingInput(f"{folder / FILE} holds the embeddings of another model than the one it names")
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)
