"""A vocabulary of the corpus's own: ``model.tokenizer=train``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from conf.errors import ConfigError
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer

EOS, PAD = "<|endoftext|>", "<|pad|>"
"""Special tokens of a tokenizer that Corral trains."""


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
    return load_tokenizer(str(out_dir))
