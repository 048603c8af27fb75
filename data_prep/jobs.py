"""From a source in the config to the job that prepares it: its raw files and its stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from conf.errors import MissingInput
from conf.safety.secrets import redact_text
from conf.schema import RunConfig, SourceConfig
from data_prep.advice.recognised import evidence
from data_prep.blocks.process import Job
from data_prep.corpus import identity
from data_prep.disk import folders
from data_prep.rows import files, hub, raw, selection
from data_prep.rows.raw import Raw
from data_prep.stages import Workspace, stages_of, template_of


class RawFiles(NamedTuple):
    """The raw files of a source, as its config chooses them."""

    kept: list[Raw]
    """Its rows, the held-out files first: of two equal rows the first stays, and that must not be the training row."""
    left_out: list[str]
    """Names of the files whose task ``select.exclude`` lists."""
    held_out: frozenset[str]
    """Names of the files among ``kept`` that ``validation`` names."""
    unread: dict[str, list[str]]
    """Names of the files of other splits, which nobody reads, by split."""


def raw_files(cfg: RunConfig, name: str) -> RawFiles:
    """The raw files of source ``name``. Raises what raw.inputs does, and MissingInput if none is left."""
    leaf, key = identity.leaves(cfg.data.sources)[name], f"data.sources.{name}"
    chosen = selection.read(leaf.select, f"{key}.select")
    found = raw.inputs(str(leaf.path), leaf.validation, key, leaf.encoding)
    together = [*found.held_out, *found.training]
    kept = [each for each in together if not chosen.leaves_out_file(each.name)]
    if not kept:
        raise MissingInput(
            f"{key}.select.exclude: the list leaves out the tasks of all {len(together)} files at {leaf.path}; "
            "shorten the list, or name other files."
        )
    left_out = [each.name for each in together if each not in kept]
    held_out = frozenset(each.name for each in found.held_out)
    return RawFiles(kept, left_out, held_out.difference(left_out), found.unread)


def new_files(leaf: SourceConfig, key: str, known: Collection[str]) -> list[str]:
    """Training files of the source at config ``key`` that are not among ``known`` nor left out by ``select``."""
    if hub.is_hub(str(leaf.path)) or not any(Path(each).is_file() for each in known):
        return []  # the raw files need not be there any more
    try:
        found = files.look(str(leaf.path), f"{key}.path").files
    except MissingInput:
        return []
    chosen = selection.read(leaf.select, f"{key}.select")
    names = map(str, found)
    return [each for each in names if redact_text(each) not in known and not chosen.leaves_out_file(each)]


def notes(found: RawFiles, leaf: SourceConfig, key: str) -> Iterator[str]:
    """What a user should know of the raw files of the source at config ``key``: what was guessed, and left unread."""
    yield from evidence(leaf, key)
    for split, names in found.unread.items():
        yield f"{key}: its {split} split is not read ({_listed(names)}); {key}.validation={split} holds it out"
    training = [Path(each.name) for each in found.kept if each.name not in found.held_out]
    if others := folders.of_other_splits(training):
        yield f"{key}: trained on although the name says another split: {_listed([str(path) for path in others])}"
    if found.held_out:
        yield f"{key}: held out as a whole, instead of a validation_fraction: {_listed(sorted(found.held_out))}"
    for how in sorted({each.read_as for each in found.kept if each.read_as}):
        yield f"{key}: {how} in {_listed([each.name for each in found.kept if each.read_as == how])}"


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more files" if len(names) > most else "")


def chats(cfg: RunConfig) -> list[str]:
    """Config keys of the sources that need a chat template."""
    leaves = identity.leaves(cfg.data.sources).items()
    keys = [(f"data.sources.{name}", leaf) for name, leaf in sorted(leaves)]
    return [f"{key}.template" for key, leaf in keys if template_of(leaf, key) == "chat"]


def job_of(
    cfg: RunConfig, name: str, found: RawFiles, *, tokenizer: Path, folder: Path, overlap: str | None = None
) -> Job:
    """The job of source ``name`` for the raw files ``found``; its finished blocks go into ``folder``.

    ``tokenizer``: folder of the corpus's tokenizer. ``overlap``: folder of the index of the evaluation sets
    (filters/decontaminate.py). Raises what stages_of does.
    """
    at = Workspace(str(tokenizer), str(folder / "exemplars.jsonl"), overlap, found.held_out)
    leaf = identity.leaves(cfg.data.sources)[name]
    paths = tuple(each.name for each in found.kept)
    return Job(name, paths, str(folder), stages_of(leaf, cfg.data, f"data.sources.{name}", at), leaf.encoding)
