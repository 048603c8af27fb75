"""Model folders as a stranger may leave them: whole and honest, with Python code beside, or with something broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import tiny_model, tiny_tokenizer

VOCAB = 320
CODE = '''\
"""Writes that it ran into the file of CORRAL_TEST_MARK."""
import os
with open(os.environ["CORRAL_TEST_MARK"], "a") as file:
    file.write({name!r} + "\\n")
'''
CONFIGURATION = """
from transformers import LlamaConfig
class ForeignConfig(LlamaConfig):
    model_type = {kind!r}
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_foreign import ForeignConfig
class ForeignForCausalLM(LlamaForCausalLM):
    config_class = ForeignConfig
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast
class ForeignTokenizer(PreTrainedTokenizerFast):
    pass
"""
GENERATE = """
def generate(model, *args, **kwargs):
    raise SystemExit("foreign generate")
"""


def honest(folder: Path) -> Path:
    """A tiny Llama with its tokenizer, all of it transformers' own."""
    tiny_tokenizer(folder, vocab_size=VOCAB)
    tiny_model("llama", vocab_size=VOCAB).save_pretrained(folder)
    return folder


def changed(path: Path, **values: Any) -> None:
    """Set keys of a JSON object in a file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


def with_code(folder: Path, *, kind: str = "llama", tokenizer: bool = True, model: bool = True) -> Path:
    """``folder`` with code in every place from which transformers would run some; each says in a file that it ran.

    ``kind``: model_type of the config; one that transformers does not know cannot be loaded without the code.
    """
    files = {}
    if model:
        files |= {"configuration_foreign": CONFIGURATION.format(kind=kind), "modeling_foreign": MODELING}
        named = {"AutoConfig": "configuration_foreign.ForeignConfig"}
        named["AutoModelForCausalLM"] = "modeling_foreign.ForeignForCausalLM"
        changed(folder / "config.json", model_type=kind, auto_map=named)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(CODE.format(name="generate") + GENERATE)
    if tokenizer:
        files["tokenization_foreign"] = TOKENIZATION
        named = {"AutoTokenizer": [None, "tokenization_foreign.ForeignTokenizer"]}
        changed(folder / "tokenizer_config.json", tokenizer_class="ForeignTokenizer", auto_map=named)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(CODE.format(name=name) + text)
    return folder
