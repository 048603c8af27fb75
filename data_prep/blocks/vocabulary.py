"""The tokenizer of a corpus, in its folder: copied from the config's tokenizer, or learnt from the records."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from conf.durable import making_folder
from conf.errors import ConfigError, InternalError
from conf.safety.console import SafeConsole
from conf.schema import RunConfig
from data_prep.blocks.process import Job
from data_prep.blocks.workers import records_of
from data_prep.corpus.identity import tokenizer_reference
from data_prep.rows.conversation import Rejected
from data_prep.rows.stage import Counts, apply
from data_prep.templates import choose
from data_prep.templates.prompts import pairs_of
from data_prep.tokenizer import learn, tokenizer
from data_prep.tokenizer.growth import Growth, base_rows, check_vocabulary
from data_prep.tokenizer.tokenizer import Tokenizer

TRAIN_CHARACTERS = 20_000_000
"""Text a vocabulary is learnt from, shared evenly among the sources: more changes few merges (and takes longer)."""

PART = 512
"""Records that are read at once."""


def provide(cfg: RunConfig, folder: Path, jobs: list[Job], chats: list[str]) -> Tokenizer:
    """The tokenizer in ``folder``; if there is none yet, it is copied or learnt first.

    ``chats``: config keys of the sources that need a chat template. Raises ConfigError, MissingInput, Unavailable.
    """
    if not folder.is_dir():
        reference, revision = tokenizer_reference(cfg)
        with making_folder(folder) as temporary:
            if reference == "train":
                if cfg.data.chat_template == "own":
                    refuse_chat(chats, "the tokenizer of model.tokenizer=train has none")
                learnt = learn.train_bpe(_texts(jobs), cfg.model.vocab_size, temporary)
                if cfg.model.new_tokens:
                    learnt = tokenizer.load_tokenizer(str(temporary), None, cfg.model.new_tokens)
                choose.with_template(learnt, cfg.data).save(temporary)
            else:
                found = tokenizer.load_tokenizer(
                    reference, revision, cfg.model.new_tokens, trust_remote_code=cfg.model.trust_remote_code
                )
                _copy(choose.with_template(found, cfg.data), chats, temporary)
    return tokenizer.load_tokenizer(str(folder))


def tell_growth(cfg: RunConfig, found: Tokenizer, console: SafeConsole) -> list[int]:
    """Say now, and not when training begins, what the tokens of ``found``, the corpus's tokenizer, mean for the base.

    Returns the ids of the tokens that model.new_tokens has added: the base knows none of them. Raises ConfigError if
    the vocab_size of a model.config is too small.
    """
    check_vocabulary(cfg.model.config or {}, found.vocab_size)
    added, base = _added(cfg, found), base_rows(cfg.model)
    beyond = max(0, found.vocab_size - base) if base else 0
    if base and (beyond or added):
        grown = Growth(base, found.vocab_size, max(beyond, len(added)))
        console.print(f"{grown.sentence()}.", highlight=False, soft_wrap=True)
    return added


def _added(cfg: RunConfig, found: Tokenizer) -> list[int]:
    reference, revision = tokenizer_reference(cfg)
    if not cfg.model.new_tokens or reference == "train":
        return []
    known = tokenizer.load_tokenizer(reference, revision, trust_remote_code=cfg.model.trust_remote_code).hf.get_vocab()
    return sorted(found.control_id(text) for text in cfg.model.new_tokens if text not in known)


def _copy(found: Tokenizer, chats: list[str], folder: Path) -> None:
    if found.chat_template is None:
        refuse_chat(chats, f"{found.name} has none")
    found.save(folder)
    if tokenizer.load_tokenizer(str(folder)).fingerprint != found.fingerprint:
        raise InternalError(
            f"model.tokenizer: {found.name} changes when it is saved and loaded again; name another tokenizer."
        )


def refuse_chat(chats: list[str], why: str) -> None:
    """Raise ConfigError if ``chats``, config keys of sources that need a chat template, names any."""
    if chats:
        raise ConfigError(
            f"{chats[0]}: 'chat' needs a tokenizer with a chat template, and {why}; give data.chat_template=chatml "
            "(or llama3, mistral, gemma, alpaca, FILE.jinja), or use template alpaca or plain"
        )


def _texts(jobs: list[Job]) -> Iterator[str]:
    """Prompts and answers of the training records, source by source."""
    share = TRAIN_CHARACTERS // len(jobs)
    for job in jobs:
        left = share
        for text in _source_texts(job):
            yield text
            left -= len(text)
            if left <= 0:
                break


def _source_texts(job: Job) -> Iterator[str]:
    records = records_of(job)
    while part := list(islice(records, PART)):
        for _, outcome in apply(job.stages.reading, part, Counts()):
            # A rejected record is named in quarantine when the blocks are made.
            if isinstance(outcome, Rejected) or job.stages.split.holds_out(outcome):
                continue
            try:
                pairs = [*pairs_of(outcome.conversation, job.stages.encode.template)]  # type: ignore[arg-type]
            except Rejected:
                continue
            yield from (text for prompt, answer in pairs for text in (prompt, answer.content))
