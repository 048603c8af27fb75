"""The tokenizer of a corpus, in its folder: copied from where the config says, or learnt from the rows themselves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from conf.errors import ConfigError, InternalError
from conf.schema import RunConfig
from data_prep import tokenizer
from data_prep.block import Counts, Job, conversation_of, is_held_out
from data_prep.conversation import Rejected
from data_prep.identity import tokenizer_reference
from data_prep.templates import prompt_of
from data_prep.tokenizer import Tokenizer

TRAIN_CHARACTERS = 20_000_000
"""Text a vocabulary is learnt from, shared evenly among the sources: more changes few merges (and takes longer)."""


def provide(cfg: RunConfig, folder: Path, jobs: list[Job], chats: list[str]) -> Tokenizer:
    """The tokenizer in ``folder``, put there first if need be.

    ``chats``: config keys of the sources that need a chat template. Raises ConfigError, MissingInput, Unavailable.
    """
    if not folder.is_dir():
        reference, revision = tokenizer_reference(cfg)
        temporary = folder.with_name("tokenizer.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        if reference == "train":
            _refuse_chat(chats, "model.tokenizer=train learns none")
            tokenizer.train_bpe(_texts(jobs), cfg.model.vocab_size, temporary)
        else:
            found = tokenizer.load(reference, revision)
            if found.chat_template is None:
                _refuse_chat(chats, f"{reference} has none")
            found.save(temporary)
            if tokenizer.load(str(temporary)).fingerprint != found.fingerprint:
                raise InternalError(f"model.tokenizer: {reference} is another tokenizer once saved and loaded again.")
        temporary.rename(folder)
    return tokenizer.load(str(folder))


def _refuse_chat(chats: list[str], why: str) -> None:
    if chats:
        raise ConfigError(
            f"{chats[0]}: 'chat' needs a tokenizer with a chat template, and {why}; "
            "use template alpaca or plain, or an instruction-tuned model's tokenizer"
        )


def _texts(jobs: list[Job]) -> Iterator[str]:
    """Prompts and answers of the rows that training will see, source by source."""
    share = TRAIN_CHARACTERS // len(jobs)
    for job in jobs:
        left = share
        for text in _source_texts(job):
            yield text
            left -= len(text)
            if left <= 0:
                break


def _source_texts(job: Job) -> Iterator[str]:
    for path in job.paths:
        for each in (row for row, chosen in job.selection.rows(path) if chosen):
            try:
                conversation = conversation_of(each.text, job, Counts())
                if is_held_out(conversation, job.validation_fraction):
                    continue
                yield prompt_of(conversation, job.template)  # type: ignore[arg-type]
                yield conversation.messages[-1].content
            except Rejected:
                continue  # named and kept in quarantine when the blocks are made
