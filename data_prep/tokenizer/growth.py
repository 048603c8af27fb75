"""Whether a base has rows for all tokens of its tokenizer; if not, how many its embedding and head grow to.

Without torch and transformers, because ``launch`` asks too: the files of a tokenizer say its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.foreign.boundary import reading
from conf.foreign.json_file import object_if_there
from conf.schema import ModelConfig
from conf.whole_numbers import ceil_div

MULTIPLE = 64
"""Rows of a table that has grown: matrix units and shards need a multiple of this many."""
GROWN = "base_vocab_size"
"""Key of the config of a model that has new rows: the rows that its base had."""
CURE = "copy its files again, or name another tokenizer"
KINDS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


@dataclass(frozen=True)
class Growth:
    base: int
    """Rows of the base's embedding."""
    tokens: int
    """Largest token id plus one."""
    new: int
    """Tokens whose rows are new: beyond the base's, or named by model.new_tokens."""

    @property
    def rows(self) -> int:
        """Of the embedding and the head when training begins."""
        return rows_for(self.base, self.tokens)

    def sentence(self) -> str:
        """What happens to the model, and what to do if that is not meant."""
        if self.rows == self.base:
            return (
                f"model.new_tokens: {self.new} tokens take rows of the embedding that the base has free "
                f"({self.base:,} rows): these begin as the mean of the others, and embedding and head are trained whole"
            )
        padding = self.rows - self.tokens
        return (
            f"model.tokenizer: it has {self.tokens:,} tokens, the base rows for {self.base:,}; embedding and head grow "
            f"to {self.rows:,} rows (a multiple of {MULTIPLE}) and are trained whole; {self.new:,} new rows and "
            f"{padding} of padding begin as the mean of the others. If these tokens are not meant, leave out "
            "model.new_tokens and name the base's own tokenizer in model.tokenizer"
        )


def rows_for(base: int, tokens: int) -> int:
    """Rows of a table of ``base`` rows once it has one for each of ``tokens``."""
    return base if tokens <= base else ceil_div(tokens, MULTIPLE) * MULTIPLE


def growth_of(model: ModelConfig, base: int | None) -> Growth | None:
    """What becomes of a base with ``base`` rows; None if it has one for every token, or if that is not known here.

    Of a tokenizer that is not on this machine the new tokens count as beyond the base's rows: an upper bound.
    """
    if base is None:
        return None
    known = _vocabulary(model)
    new = len([text for text in model.new_tokens if text not in known])
    tokens = token_count(model) or base + new
    beyond = max(0, tokens - base)
    return Growth(base, tokens, max(beyond, new)) if beyond or new else None


def token_count(model: ModelConfig) -> int | None:
    """Largest token id plus one, with new tokens; None if the tokenizer is not on this machine."""
    known = _vocabulary(model)
    new = len([text for text in model.new_tokens if text not in known])
    if model.tokenizer == "train":
        return model.vocab_size + new
    return max(known.values()) + 1 + new if known else None


def base_rows(model: ModelConfig) -> int | None:
    """Rows of the base's embedding by its config.json on this machine; None if it is not here, or not pretrained."""
    found = config_file(model.path, model.revision) if model.path else None
    rows = object_if_there(found).get("vocab_size") if found else None
    return rows if isinstance(rows, int) else None


def check_vocabulary(config: Mapping[str, Any], tokens: int) -> None:
    """Raise ConfigError if ``config``, a model.config, has a vocab_size of its own that is too small for ``tokens``."""
    rows = config.get("vocab_size")
    if rows is not None and (not isinstance(rows, int) or rows < tokens):
        raise ConfigError(
            f"model.config.vocab_size: {rows} is less than the tokenizer's {tokens}; remove the key to use that"
        )


def config_file(name: str, revision: str | None, file: str = "config.json") -> Path | None:
    """``file`` of a folder or hub id, if this machine has it."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local / file if (local / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _vocabulary(model: ModelConfig) -> dict[str, int]:
    """Ids by token of the tokenizer of ``model`` without its new tokens; empty if its files are not here."""
    name = model.tokenizer or model.path
    if name is None or model.tokenizer == "train":
        return {}
    revision = model.revision if name == model.path else None
    found = {file: config_file(name, revision, file) for file in FILES}
    path = next((path for file, read in FILES.items() if read and (path := found[file])), None)
    with reading(f"model.tokenizer: {path}", CURE):
        pieces = dict(_pieces(path, path.stat().st_mtime_ns)) if path else {}
    if not pieces:
        return {}
    with reading(f"model.tokenizer: the tokens that the files of {name} add", CURE):
        settings = object_if_there(found["tokenizer_config.json"])
        for index, token in settings.get("added_tokens_decoder", {}).items():
            pieces.setdefault(token["content"], int(index))
        for text, index in object_if_there(found["added_tokens.json"]).items():
            pieces.setdefault(text, int(index))
        for text in _specials(settings, object_if_there(found["special_tokens_map.json"])):
            pieces.setdefault(text, max(pieces.values()) + 1)
    return pieces


def ids_in(folder: Path) -> Iterator[int]:
    """The token ids that the JSON files of a tokenizer's folder name; what is no number there is passed over."""
    content = object_if_there(folder / "tokenizer.json")
    model = content.get("model")
    tables = [model.get("vocab") if isinstance(model, dict) else None]
    tables += [object_if_there(folder / name) for name in ("vocab.json", "added_tokens.json")]
    found: list[Any] = [index for table in tables if isinstance(table, dict) for index in table.values()]
    added = content.get("added_tokens")
    found += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    decoder = object_if_there(folder / "tokenizer_config.json").get("added_tokens_decoder")
    found += [int(each) for each in decoder if each.isdecimal()] if isinstance(decoder, dict) else []
    return (each for each in found if isinstance(each, int))


@lru_cache(maxsize=2)
def _pieces(path: Path, modified_ns: int) -> dict[str, int]:
    read = FILES[path.name]
    return {str(piece): int(index) for piece, index in read(path)} if read else {}


def _of_json(path: Path) -> Iterator[tuple[str, int]]:
    content = object_if_there(path)
    pieces = content.get("model", {}).get("vocab", {})
    if isinstance(pieces, dict):
        yield from pieces.items()
    else:  # Unigram: [[piece, score], ...]
        yield from ((piece[0], index) for index, piece in enumerate(pieces))
    yield from ((token["content"], token["id"]) for token in content.get("added_tokens", ()))


def _of_sentencepiece(path: Path) -> Iterator[tuple[str, int]]:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):  # preparation names the broken file
        return
    yield from ((model.id_to_piece(index), index) for index in range(model.vocab_size()))


def _of_vocab(path: Path) -> Iterator[tuple[str, int]]:
    yield from object_if_there(path).items()


FILES: dict[str, Callable[[Path], Iterator[tuple[str, int]]] | None] = {
    "tokenizer.json": _of_json,
    "tokenizer.model": _of_sentencepiece,
    "vocab.json": _of_vocab,
    "tokenizer_config.json": None,
    "added_tokens.json": None,
    "special_tokens_map.json": None,
}
"""The files that say a tokenizer's tokens; of the first three, the first that is there."""


def _specials(*settings: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens by name, which transformers adds where the vocabulary lacks them."""
    for each in settings:
        named = [each.get(f"{kind}_token") for kind in KINDS]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            further = each.get(key) or []
            named += further.values() if isinstance(further, dict) else further
        yield from (token["content"] if isinstance(token, dict) else token for token in named if token)
