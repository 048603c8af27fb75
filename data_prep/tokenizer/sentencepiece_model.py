"""A folder whose vocabulary is a SentencePiece model (``tokenizer.model``): transformers' reading, SentencePiece's ids.

Special tokens, added tokens, the chat template, and BOS and EOS are what AutoTokenizer reads in the folder. The ids of
text are SentencePiece's own, which transformers' conversion misses in two ways: a model without a tokenizer_config.json
gets no dummy prefix, and merges come in another order (Mistral v1: 299 of 300, or 85 of 3,000, Alpaca outputs differed
from SentencePiece). The order that SentencePiece uses is: of all adjacent pairs whose union is a piece, merge the one
with the best score first (Kudo and Richardson 2018, ``bpe_model.cc``). That is what ``_merges`` writes: 3 of 3,000
outputs differ, all in long runs of one character, where several pairs tie. The result is compared with SentencePiece
itself before it is used.

One difference stays where a tokenizer_config.json names a Llama tokenizer: a text that begins with a space gets no
dummy prefix beside it. Only so can the prefix be that of a text's beginning and not follow every special token too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import BadData, Unavailable

MODEL, CONFIG = "tokenizer.model", "tokenizer_config.json"
PROBES = (
    "Hello world",
    " leading, trailing ",
    "two  spaces\n    and four\n\ttab",
    "def f(n):\n    return n * 10 ** -3",
    "naïve 你好 🙂 \u00a0",
)
SPACE = "▁"
SURROUNDINGS = ("normalizer", "pre_tokenizer", "decoder")
"""The parts of a tokenizer that decide where a dummy prefix goes, and take it away again."""


def with_its_ids(read: Any, folder: Path) -> Any:
    """``read``, AutoTokenizer's tokenizer of ``folder``, such that it gives text SentencePiece's ids.

    Without a tokenizer_config.json nothing says whether texts begin with BOS; then they do, as with the SentencePiece
    models of chat LLMs. Raises Unavailable (no sentencepiece package, a model that cannot be converted) and BadData
    (not a model).
    """
    from tokenizers import Tokenizer

    config = folder / CONFIG
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    model = _open(folder / MODEL)
    if settings.get("add_prefix_space") is False:
        model.override_normalizer_spec(add_dummy_prefix=False)
    found = json.loads(read.backend_tokenizer.to_str())
    if found["model"]["type"] == "BPE":
        own = json.loads(_convert(model).to_str())
        found["model"] = own["model"]
        if not _agrees(found, model):
            found |= {part: own[part] for part in SURROUNDINGS}
        if not config.is_file():
            found["post_processor"] = own["post_processor"]
    if not _agrees(found, model):
        raise Unavailable(
            f"{folder / MODEL} cannot be converted faithfully (only SentencePiece BPE models without a normaliser "
            "can); use a folder that holds a tokenizer.json"
        )
    return with_backend(read, Tokenizer.from_str(json.dumps(found)))


def _open(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise Unavailable(f"{path} needs the sentencepiece package: pip install sentencepiece") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise BadData(f"{path} is not a SentencePiece model ({error}).") from error


def _agrees(state: dict[str, Any], model: Any) -> bool:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(state))
    at_beginning = (state["pre_tokenizer"] or {}).get("prepend_scheme") == "first"
    texts = [text for text in PROBES if not (at_beginning and text.startswith(" "))]
    return all(backend.encode(text, add_special_tokens=False).ids == model.encode(text) for text in texts)


def with_backend(read: Any, backend: Any) -> Any:
    """A tokenizer of no special class, so that what is saved is read as it is, with all else as in ``read``."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **read.special_tokens_map,
        chat_template=read.chat_template,
        padding_side=read.padding_side,
        truncation_side=read.truncation_side,
        model_max_length=read.model_max_length,
        clean_up_tokenization_spaces=False,
    )


def _convert(model: Any) -> Any:
    """A backend of the tokenizers library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = [model.id_to_piece(index) for index in range(model.vocab_size())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    unknown = pieces[model.unk_id()]
    backend = Tokenizer(models.BPE(vocab, _merges(model, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = model.encode("a", out_type=str)[0].startswith(SPACE)
    prepend = [normalizers.Prepend(SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    controls = [index for index in range(len(pieces)) if model.is_control(index) or model.is_unknown(index)]
    backend.add_special_tokens([AddedToken(pieces[index], normalized=False, special=True) for index in controls])
    bos = pieces[model.bos_id()]
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, model.bos_id())])
    return backend


def _merges(model: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    ranked = []
    for piece, index in vocab.items():
        if model.is_control(index) or model.is_unknown(index) or model.is_byte(index):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-model.get_score(index), vocab[left], vocab[right], (left, right)))
    return [pair for *_, pair in sorted(ranked)]
