"""Tuning methods, one file each, named after ``tuning.method``: what is trained, and what becomes of it.

Each module has

- ``apply(model, tuning, family, seed=)``, which makes exactly the right parameters trainable,
- ``merge(model)``, which gives back a plain transformers model,
- ``save(model, tuning, folder, base=)``, which writes what was trained alone, and ``load(model, folder)``, which puts
  that on the base again,
- ``FOLDER``, by which such a folder is recognised; None if the method's result is a whole model.

Settings, facts and element counts of a method stand in its dataclass, conf/schema/methods.py. This folder is the list
of methods; modules whose name begins with _ are shared parts. ``trainable`` is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from torch import nn

from conf.schema.methods import Tuning, virtual_tokens
from train.families import Family
from train.tuning import _peft, _tables
from train.tuning._tables import FILE as TABLES
from train.tuning._tables import give_rows
from train.tuning._virtual import taken

__all__ = [
    "TABLES",
    "apply",
    "base_of",
    "give_rows",
    "holds_adapters",
    "load",
    "merge",
    "save",
    "taken",
    "train_tables",
    "trainable",
    "virtual_tokens",
]


def _method(name: str) -> ModuleType:
    return import_module(f"train.tuning.{name}")


def _savers() -> Iterator[ModuleType]:
    """The methods whose result is a folder of its own."""
    for found in iter_modules(__path__):
        if not found.name.startswith("_") and _method(found.name).FOLDER is not None:
            yield _method(found.name)


def apply(model: nn.Module, tuning: Tuning, family: Family, *, seed: int) -> nn.Module:
    """``model`` with ``tuning`` applied. New weights follow from ``seed``, their names and the base alone.

    Raises ConfigError for names that the model does not have. Under ZeRO-3 it is called inside the loading context,
    in which the few weights it reads are gathered (collective).
    """
    applied: nn.Module = _method(tuning.method).apply(model, tuning, family, seed=seed)
    return applied


def train_tables(model: nn.Module, tuning: Tuning) -> bool:
    """Train embedding and head whole beside what ``tuning`` trains, because they have new rows.

    A method whose result is a whole model decides itself; the result says whether both are trained. Raises
    ConfigError if the head has an adapter.
    """
    if _method(tuning.method).FOLDER is not None:
        _tables.train(model)
    return _tables.are_trained(model)


def merge(model: nn.Module, tuning: Tuning) -> nn.Module:
    """The plain transformers model that computes the same function, up to rounding.

    Raises ConfigError for a method that no plain model can express.
    """
    merged: nn.Module = _method(tuning.method).merge(model)
    return merged


def save(model: nn.Module, tuning: Tuning, folder: Path, *, base: str) -> None:
    """Write what was trained, without the base, to ``folder``; ``base`` is where others find the base.

    Embedding and head are among it if they were trained: in PEFT's form if the method is one for which PEFT has it.
    Raises ConfigError for a method whose result is the whole model.
    """
    _method(tuning.method).save(model, tuning, folder, base=base)
    _tables.save_beside(model, folder)


def holds_adapters(folder: Path) -> bool:
    """Whether ``folder`` looks like one that ``save`` wrote."""
    return any(method.FOLDER.is_there(folder) for method in _savers())


def base_of(folder: Path) -> str | None:
    """The folder or hub id of the base that the adapters in ``folder`` belong to; None for a folder without adapters.

    Raises OSError, ValueError or KeyError for a file that does not say.
    """
    for method in _savers():
        if method.FOLDER.is_there(folder):
            return str(method.FOLDER.read(folder)["base_model_name_or_path"])
    return None


def load(model: nn.Module, folder: Path) -> nn.Module:
    """``model``, the base, with the adapters of ``folder``; PEFT loads those of a method that is not here.

    The base gets as many rows for tokens as the folder has. Raises MissingInput or ValueError if they are those of
    another base.
    """
    owner: ModuleType = next((method for method in _savers() if method.FOLDER.fits(folder)), _peft)
    rows = _tables.rows_in(model, folder)
    if rows is not None:
        give_rows(model, rows)
    loaded: nn.Module = owner.load(model, folder)
    _tables.load_beside(loaded, folder)
    return loaded


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by canonical name: the module path in the unwrapped model; tied weights appear once.

    The names depend on the model and the tuning only, never on ranks, ZeRO stage or recomputation.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
