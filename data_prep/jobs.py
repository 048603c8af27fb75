"""From a source in the config to the job that prepares it: its files, its templates and task lists read."""

from __future__ import annotations

from pathlib import Path

from conf.errors import MissingInput
from conf.schema import RunConfig
from conf.style import StyleConfig
from data_prep import identity, raw, selection, template_set
from data_prep.block import Job
from data_prep.clean import switches
from data_prep.raw import Raw
from data_prep.styles import Style
from data_prep.template_set import Template
from data_prep.templates import resolve


def raw_files(cfg: RunConfig, name: str) -> tuple[list[Raw], list[str]]:
    """(inputs of a source, names left out because ``select.exclude`` has their task), sorted; raises what raw.find does
    and MissingInput if none is left."""
    leaf, key = identity.leaves(cfg.data.sources)[name], f"data.sources.{name}"
    chosen = selection.read(leaf.select, f"{key}.select")
    found = raw.find(str(leaf.path), f"{key}.path")
    kept = [each for each in found if not chosen.leaves_out_file(each.name)]
    if not kept:
        raise MissingInput(f"{key}.select.exclude: all {len(found)} files at {leaf.path} are of tasks it leaves out.")
    return kept, [each.name for each in found if each not in kept]


def job_of(
    cfg: RunConfig, name: str, paths: tuple[str, ...], *, tokenizer: Path, folder: Path, overlap: str | None = None
) -> Job:
    """The job of a source. Raises MissingInput and BadData for its template set and its task list.

    ``overlap``: folder of the index of the evaluation sets (decontaminate.py).
    """
    leaf, data = identity.leaves(cfg.data.sources)[name], cfg.data
    key = f"data.sources.{name}"
    return Job(
        source=name,
        paths=paths,
        format=str(leaf.format),
        fields=leaf.fields,
        template=resolve(leaf.template, str(leaf.format)),
        validation_fraction=leaf.validation_fraction,
        seq_len=data.seq_len,
        truncate=data.over_length == "truncate_right",
        switches=switches(data.clean),
        overlap=overlap,
        near_duplicates=data.near_duplicates,
        tokenizer=str(tokenizer),
        folder=str(folder),
        selection=selection.read(leaf.select, f"{key}.select"),
        style=_style(leaf.style, data.style_seed, f"{key}.style") if leaf.style else None,
    )


def _style(style: StyleConfig, seed: int, key: str) -> Style:
    templates: tuple[Template, ...] = (template_set.AS_GIVEN,)
    if style.templates is not None:
        path = template_set.locate(style.templates, f"{key}.templates")
        templates = template_set.load(path, "zero" if style.shots == 0 else "few")
    return Style(templates, style.shots, style.options, style.prompt_tokens, seed)
