"""Tokenizers: fingerprint, rendering, and text that stays text. ``folder`` reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from conf.errors import ConfigError
from conf.foreign.boundary import reading
from conf.foreign.panics import untold
from conf.foreign.reasons import REFUSES
from data_prep.rows.conversation import Rejected
from data_prep.tokenizer import folder
from data_prep.tokenizer.growth import CURE
from data_prep.tokenizer.renderer import Ask, renderer

ANSWER = "\ue0f0answer\ue0f1"
"""Stands for an answer where a chat template is only asked what it writes around it."""


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
        self._inside = _without_prefix(self._backend)

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

    def find_controls(self, text: str, start: int = 0) -> Iterator[re.Match[str]]:
        """Every special token that ``text`` spells out from ``start`` on."""
        return self._control_pattern.finditer(text, start)

    def without_controls(self, text: str) -> str:
        """``text`` without the special tokens that it spells out."""
        return self._control_pattern.sub("", text)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides ids: model (vocabulary, merges), normaliser, pre-tokeniser, specials, chat template."""
        return self._hash(chat_template=self.chat_template)

    @cached_property
    def text_fingerprint(self) -> str:
        """``fingerprint`` without the chat template: which ids a text has."""
        return self._hash()

    def _hash(self, **further: Any) -> str:
        state = json.loads(self._backend.to_str())
        added = sorted((token["id"], token["content"], token["special"]) for token in state["added_tokens"])
        parts: dict[str, Any] = {key: state[key] for key in ("model", "normalizer", "pre_tokenizer")}
        parts |= {"added": added, "special": [self.bos_id, self.eos_id, self.hf.pad_token_id, self.starts_with_bos]}
        parts |= further
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())

    def encode(self, text: str, *, inside: bool = False) -> list[int]:
        """Ids of ``text`` alone: no BOS, no EOS, and special-token text stays text.

        ``inside``: it follows a special token, where some tokenizers put no space before it (Llama's in transformers).
        """
        return self.encode_batch([text], [inside])[0]

    def encode_batch(self, texts: Sequence[str], inside: Sequence[bool] | None = None) -> list[list[int]]:
        """``encode`` of each, in parallel threads unless TOKENIZERS_PARALLELISM=false. Raises Rejected."""
        if self._inside is self._backend or inside is None or not any(inside):
            return self._encoded(texts, self._backend)
        within = iter(self._encoded([text for text, in_it in zip(texts, inside, strict=True) if in_it], self._inside))
        first = [text for text, in_it in zip(texts, inside, strict=True) if not in_it]
        at_start = iter(self._encoded(first, self._backend))
        return [next(within if in_it else at_start) for in_it in inside]

    def _encoded(self, texts: Sequence[str], backend: Any) -> list[list[int]]:
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
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
        """The chat template's text for ``messages``, as transformers' ``apply_chat_template`` writes it; see below."""
        (text,) = self.render_all([Ask(messages, tools, add_generation_prompt)])
        if isinstance(text, Rejected):
            raise text
        return text

    def render_all(self, asks: Sequence[Ask]) -> list[str | Rejected]:
        """The text of each, rendered in a process of its own; Rejected with what the template has against it."""
        if not asks:
            return []
        try:  # one that uses tools may have a template of its own
            chosen = [self.hf.get_chat_template(None, ask.tools) for ask in asks]
        except ValueError as error:
            return [Rejected(REFUSES, str(error))] * len(asks)
        found: dict[int, str | Rejected] = {}
        for template in dict.fromkeys(chosen):
            places = [place for place, each in enumerate(chosen) if each == template]
            texts = renderer.texts(template, self.hf.special_tokens_map, [asks[place] for place in places])
            found |= zip(places, texts, strict=True)
        return [found[place] for place in range(len(asks))]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: EOS, and the control token at the end of the chat template's answers."""
        end = None if self.chat_template is None else self._end_of_turn()
        return (self.eos_id,) if end is None else tuple(dict.fromkeys((self.eos_id, self.control_id(end))))

    def _end_of_turn(self) -> str | None:
        """The last control token between an answer and whatever follows it; None if there is none."""
        asked, said = {"role": "user", "content": "x"}, {"role": "assistant", "content": ANSWER}
        try:
            ends = [self.render(turns).partition(ANSWER)[2] for turns in ([asked, said], [asked, said, asked])]
        except Rejected:
            return None
        found = [[each.group() for each in self.find_controls(end)] for end in ends]
        same = [one for one, other in zip(*found, strict=False) if one == other]
        return same[-1] if same and found[0][: len(same)] == found[1][: len(same)] else None

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer folder that ``load_tokenizer`` opens with the same fingerprint."""
        self.hf.save_pretrained(str(folder))


def _without_prefix(backend: Any) -> Any:
    """``backend``, or a copy that puts no space before a text, if it puts one only at a text's beginning."""
    from tokenizers import Tokenizer as Backend

    state = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    if all(each.get("prepend_scheme") != "first" for each in (state, *state.get("pretokenizers", ()))):
        return backend
    whole = json.loads(backend.to_str())
    for each in (whole["pre_tokenizer"], *whole["pre_tokenizer"].get("pretokenizers", ())):
        if each.get("prepend_scheme") == "first":
            each["prepend_scheme"] = "never"
    inside = Backend.from_str(json.dumps(whole))
    inside.encode_special_tokens = True
    return inside


def load_tokenizer(
    name_or_path: str, revision: str | None = None, new_tokens: Sequence[str] = (), *, trust_remote_code: bool = False
) -> Tokenizer:
    """The tokenizer of a folder or hub id, as AutoTokenizer reads it, with ``new_tokens`` as further special tokens.

    ``trust_remote_code``: code that the folder brings may run; without it none does. Raises MissingInput (no such
    folder or hub repository), Unavailable (hub not reachable or access refused, within about 10 s) and BadData (a
    broken file), each naming ``name_or_path``.
    """
    hf = folder.read(name_or_path, revision, trust_remote_code=trust_remote_code)
    with reading(f"model.tokenizer: {name_or_path}", CURE), untold():
        return Tokenizer(_with(new_tokens, hf), name_or_path)


def _with(new_tokens: Sequence[str], hf: Any) -> Any:
    """``hf`` with special tokens added behind all others; one that it has already keeps its id."""
    if new_tokens:
        hf.add_tokens(list(new_tokens), special_tokens=True)
    return hf
