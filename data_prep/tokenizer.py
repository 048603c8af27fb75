"""Tokenizers: loading, training, fingerprint, and text that stays text. The one user of transformers in data_prep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from conf.errors import BadData, ConfigError, MissingInput, Unavailable
from data_prep import hub, sentencepiece_model
from data_prep.conversation import Rejected

EOS, PAD = "<|endoftext|>", "<|pad|>"
"""Special tokens of a tokenizer that Corral trains."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Tokenizer:
    """A fast tokenizer whose ``encode`` never makes a control token out of text."""

    def __init__(self, hf: Any, name: str) -> None:
        """``hf``: a fast tokenizer of transformers; ``name``: where it is from, for messages. Raises ConfigError."""
        if not getattr(hf, "is_fast", False):
            raise ConfigError(f"model.tokenizer: {name} has no fast tokenizer; use a folder with a tokenizer.json")
        if hf.eos_token_id is None:
            raise ConfigError(f"model.tokenizer: {name} has no end-of-sequence token; set eos_token in its config")
        from tokenizers import Tokenizer as Backend

        self.hf = hf
        self.name = name
        self._backend = Backend.from_str(hf.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        # Special tokens in a text are then split like any other text instead of becoming control ids.
        self._backend.encode_special_tokens = True

    @property
    def eos_id(self) -> int:
        return int(self.hf.eos_token_id)

    @property
    def pad_id(self) -> int:
        """EOS if it has none of its own."""
        return self.eos_id if self.hf.pad_token_id is None else int(self.hf.pad_token_id)

    @property
    def bos_id(self) -> int | None:
        return None if self.hf.bos_token_id is None else int(self.hf.bos_token_id)

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer itself puts BOS before every text (Llama and Mistral do, GPT-2 does not)."""
        ids = self.hf.backend_tokenizer.encode("a", add_special_tokens=True).ids
        return bool(ids) and ids[0] == self.bos_id

    @property
    def chat_template(self) -> str | None:
        template = self.hf.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @cached_property
    def controls(self) -> dict[str, Any]:
        """Special tokens by text: ``tokenizers.AddedToken`` (with lstrip, rstrip) of each; ids by ``control_id``."""
        added = self._backend.get_added_tokens_decoder().values()
        return {token.content: token for token in added if token.special}

    def control_id(self, text: str) -> int:
        return int(self.hf.convert_tokens_to_ids(text))

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        names = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        # The unknown token is a special token too, but unknown characters are text and must be able to yield it.
        return frozenset(self.control_id(text) for text in self.controls if text != self.hf.unk_token)

    def find_control(self, text: str) -> str | None:
        """The first special token that ``text`` spells out, or None."""
        found = self._control_pattern.search(text)
        return found.group() if found else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides ids: model (vocabulary, merges), normaliser, pre-tokeniser, specials, chat template."""
        state = json.loads(self._backend.to_str())
        added = sorted((token["id"], token["content"], token["special"]) for token in state["added_tokens"])
        parts: dict[str, Any] = {key: state[key] for key in ("model", "normalizer", "pre_tokenizer")}
        parts |= {"added": added, "special": [self.bos_id, self.eos_id, self.hf.pad_token_id, self.starts_with_bos]}
        parts["chat_template"] = self.chat_template
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: no BOS, no EOS, and special-token text stays text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each, in parallel threads unless TOKENIZERS_PARALLELISM=false. Raises Rejected."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._checked(text, entry.ids) for text, entry in zip(texts, encoded, strict=True)]

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """A special token that is also an ordinary piece (Unigram, WordLevel) is broken after its first character."""
        if not self.find_control(text) or self._forbidden.isdisjoint(ids):
            return ids
        cuts = [0, *(found.start() + 1 for found in self._control_pattern.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        encoded = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        broken = [index for entry in encoded for index in entry.ids]
        if not self._forbidden.isdisjoint(broken):
            raise Rejected("special_token_text", f"{self.find_control(text)!r} cannot be tokenised as text")
        return broken

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; for byte-level tokenizers decode(encode(text)) == text."""
        return str(self._backend.decode([int(index) for index in ids], skip_special_tokens=True))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat template's text for ``messages``, in transformers' sandboxed jinja; raises jinja2.TemplateError."""
        text: str = self.hf.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    @cached_property
    def chat_opening(self) -> str:
        """What the chat template writes to open the assistant's turn; "" if it has no such thing."""
        probe = [{"role": "user", "content": "x"}]
        closed, opened = self.render(probe), self.render(probe, add_generation_prompt=True)
        return opened[len(closed) :] if opened.startswith(closed) else ""

    @cached_property
    def chat_takes_tools(self) -> bool:
        """Whether the chat template writes tools out."""
        probe = [{"role": "user", "content": "x"}]
        tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
        return self.render(probe) != self.render(probe, tools=[tool])

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer folder that ``load`` opens with the same fingerprint."""
        self.hf.save_pretrained(str(folder))


def load(name_or_path: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a folder or hub id.

    Raises MissingInput (no such folder or hub repository), Unavailable (hub not reachable or access refused, within
    about 10 s) and BadData (a broken file), each naming ``name_or_path``.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return Tokenizer(_from_folder(folder), str(name_or_path))
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name_or_path):
        raise MissingInput(f"model.tokenizer: no folder {name_or_path}{_near(folder)}.")
    return Tokenizer(_from_hub(name_or_path, revision), name_or_path)


def _near(path: Path) -> str:
    """The nearest existing parent, for a message."""
    parent = next((each for each in path.parents if each.is_dir()), None)
    if parent is None:
        return ""
    names = sorted(each.name for each in parent.iterdir() if each.is_dir())[:8]
    return f"; {parent} holds {', '.join(names) or 'no folders'}"


def _from_folder(folder: Path) -> Any:
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        raise MissingInput(f"model.tokenizer: {folder} holds no tokenizer (none of {', '.join(FILES)}).")
    for name in present:
        if name.endswith(".json"):
            _check_json(folder / name)
    if "tokenizer.model" in present and "tokenizer.json" not in present:
        hf = sentencepiece_model.load(folder / "tokenizer.model")
        if "tokenizer_config.json" in present:
            hf.chat_template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
        return hf
    return _auto(str(folder), local_files_only=True)


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"model.tokenizer: {path} is not valid JSON ({error}).") from error


def _auto(name: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadData(f"model.tokenizer: cannot load the tokenizer of {name}: {reason[0]}") from error


def _from_hub(name: str, revision: str | None) -> Any:
    """From the local cache if it is there; else ask the hub once, with a timeout, before anything that retries."""
    try:
        return _auto(name, revision=revision, local_files_only=True)
    except (OSError, BadData):
        from huggingface_hub import HfApi

        with hub.asking(name, "model.tokenizer", "it is not in the local cache either, so name a local folder"):
            HfApi().model_info(name, revision=revision, timeout=hub.TIMEOUT_S)
    try:
        return _auto(name, revision=revision)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"model.tokenizer: cannot fetch the tokenizer of {name}: {reason}") from error


def train_bpe(texts: Iterable[str], vocab_size: int, out_dir: Path) -> Tokenizer:
    """Learn a byte-level BPE of at most ``vocab_size`` tokens (Radford et al. 2019) and save it in ``out_dir``.

    The same texts give the same tokenizer. Raises ConfigError below 258 tokens (256 bytes, EOS and PAD).
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 258:
        raise ConfigError(f"model.vocab_size: {vocab_size} is too small; at least 258 (256 bytes, EOS and PAD)")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    hf.save_pretrained(str(out_dir))
    return load(str(out_dir))
