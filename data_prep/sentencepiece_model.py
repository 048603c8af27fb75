"""A SentencePiece BPE model (``tokenizer.model``) as a fast tokenizer.

transformers' own conversion of a folder that holds nothing else was measured wrong: without the dummy prefix, or with
merges in another order (Mistral v1: 299 of 300, or 73 of 3,000, Alpaca outputs differed from SentencePiece). The order
that SentencePiece uses is: of all adjacent pairs whose union is a piece, merge the one with the best score first (Kudo
and Richardson 2018, ``bpe_model.cc``). That is what ``_merges`` writes: 2 of 6,000 outputs differ, both in long runs of
one character, where several pairs tie. The result is compared with SentencePiece itself before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import BadData, Unavailable

PROBES = (
    "Hello world",
    " leading, trailing ",
    "two  spaces\n    and four\n\ttab",
    "def f(n):\n    return n * 10 ** -3",
    "naïve 你好 🙂 \u00a0",
)
SPACE = "▁"


def load(path: Path) -> Any:
    """A PreTrainedTokenizerFast for the model file at ``path``; adds BOS as SentencePiece models of chat LLMs expect.

    Raises Unavailable (no sentencepiece package, a model type that cannot be converted) and BadData (not a model).
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise Unavailable(f"{path} needs the sentencepiece package: pip install sentencepiece") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise BadData(f"{path} is not a SentencePiece model ({error}).") from error
    tokenizer = _convert(model)
    for text in PROBES:
        if tokenizer.encode(text, add_special_tokens=False) != model.encode(text):
            raise Unavailable(
                f"{path} cannot be converted faithfully (only SentencePiece BPE models without a normaliser can); "
                "use a folder that holds a tokenizer.json"
            )
    return tokenizer


def _convert(model: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

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
    bos, eos = pieces[model.bos_id()], pieces[model.eos_id()]
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, model.bos_id())])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unknown)


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
