"""The index of a base's weights: it stays in its folder, and the hash covers what is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conf.errors import BadData
from conf.schema import ModelConfig
from tests.tiny import tiny_model
from tests.train.model.test_build import built
from train.model.weights import base_hash, loaded_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def in_parts(folder: Path, **files: str) -> Path:
    """``folder`` with its weights under another name, and an index that says which file each weight is in."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = dict.fromkeys(tensors, "part.safetensors") | files
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@pytest.mark.parametrize("name", ["../part.safetensors", "a/../../part.safetensors", "/etc/passwd"])
def test_an_index_does_not_leave_its_folder(folder: Path, name: str) -> None:
    """transformers follows it wherever it leads; nothing is read from there."""
    first = next(iter(load_file(folder / "model.safetensors")))
    in_parts(folder, **{first: name})
    for read in (loaded_files, base_hash, lambda path: built(path / "run", ModelConfig(path=str(path)))):
        with pytest.raises(BadData, match=r"index\.json names weights outside of its folder: "):
            read(folder)


def test_the_hash_covers_what_is_loaded(folder: Path) -> None:
    assert loaded_files(folder) == ["model.safetensors"]
    first = next(iter(load_file(folder / "model.safetensors")))
    in_parts(folder, **{first: "deep/more.safetensors"})
    (folder / "deep").mkdir()
    shutil.copy(folder / "part.safetensors", folder / "deep" / "more.safetensors")
    assert loaded_files(folder) == ["deep/more.safetensors", "part.safetensors"]
    before = base_hash(folder)
    content = bytearray((folder / "deep" / "more.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "deep" / "more.safetensors").write_bytes(content)
    assert base_hash(folder) != before
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"transformers_weights": "part.safetensors"}))
    assert loaded_files(folder) == ["part.safetensors"]


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_named(folder: Path, content: str) -> None:
    (in_parts(folder) / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BadData, match=r"model\.safetensors\.index\.json .*; copy it again"):
        loaded_files(folder)
