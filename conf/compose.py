"""Composes and checks the config of a command line. No other module imports hydra or omegaconf.

Plain Hydra stops at the first unknown key and refuses ``zero=2``. Therefore Hydra parses the overrides and composes
the groups, with the names of entries as text; then conf/values.py sets the single values, and the schema checks
everything together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf import command as command_line
from conf import walk
from conf.advice.entries import not_composed, wrong_entry
from conf.advice.interpolation import unresolved
from conf.advice.unsure import Unsure, unsure
from conf.advice.words import twice, unreadable
from conf.checks.folders import unusable
from conf.checks.own_sources import without_entry
from conf.errors import ConfigError
from conf.foreign.interpolation import size_of
from conf.foreign.limits import RESOLVED_CHARACTERS
from conf.frozen import load_config, save_config, to_record, to_yaml
from conf.groups import ROOT, groups, search_path
from conf.help import help_text
from conf.judge import judged
from conf.own_files import spelt_out
from conf.safety.environment import Reading, keep, literal, showing, unread
from conf.safety.secrets import learn_from
from conf.schema import RunConfig, to_dict
from conf.values import Setting, make_empty, missing, set_values

__all__ = [
    "ROOT",
    "compose",
    "config_from_argv",
    "config_of_run",
    "groups",
    "load_config",
    "save_config",
    "to_record",
    "to_yaml",
]


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """The checked config of the root, its groups and ``overrides``.

    ``config_dir`` holds the user's own groups and entries; an entry there replaces Corral's entry of the same name.
    Raises ConfigError with all problems, MissingInput if ``config_dir`` is not a folder.
    """
    return _compose(overrides, config_dir)[0]


def _compose(
    overrides: Sequence[str], config_dir: Path | None, told: Sequence[str] = ()
) -> tuple[RunConfig, list[str]]:
    """The config, and what was left out of it, in sentences. ``told``: problems that were found already."""
    roots = search_path(config_dir, ROOT)
    known = groups(roots)
    parsed, misspelt = _parsed(overrides)
    choices = [each for each in parsed if each.key_or_group in known and not isinstance(each.value(), dict)]
    wrong = {each.key_or_group: line for each in choices for line in _wrong_entries(each, known)}
    doubt = unsure(wrong, walk.keys_at(RunConfig))
    problems = [*told, *misspelt, *dict.fromkeys(line for each in choices for line in _wrong_entries(each, known))]
    words = _for_hydra([each for each in choices if each.key_or_group not in wrong])
    own_files = any(each.key_or_group == "data" and "own" in _entries(each) for each in choices)
    settings, untold = spelt_out([_setting(each) for each in parsed if each not in choices], own_files)
    problems += untold if not any(word.startswith("path=") for word in overrides) or _reads_path(parsed) else []
    try:
        config, named = _composed(roots, words)
        own = None if "data" in named or "~data" in words else _composed(roots, [*words, "~data"])[0]
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += [line for key, line in set_values(config, settings) if not doubt.covers(key)]
    if own is not None:
        set_values(own, settings)
    notes = _without_entry(config, own)
    return _judged(config, known, problems, doubt), notes


def config_from_argv(
    argv: Sequence[str], *, command: str, extra: Mapping[str, str] | None = None
) -> tuple[RunConfig, dict[str, str]]:
    """The config of a command line, and the command's own keys as text.

    ``command`` is the module (``data_prep``) or the words that start it; ``extra`` maps each own key to its help, and
    ``rows=3`` is split off as ``{"rows": "3"}`` before Hydra sees the rest. ``--help`` and ``--cfg job`` print and
    leave with SystemExit(0); ``--config-dir DIR`` adds the user's groups.
    """
    own_keys = extra or {}
    line = command_line.split(argv, own_keys)
    known = groups(search_path(line.config_dir, ROOT))
    if line.wants_help:
        command_line.print_and_leave(help_text(command, own_keys, groups=known))
    mistyped = command_line.mistyped(line.overrides, own_keys, {*walk.keys_at(RunConfig), *known})
    rest = [override for override in line.overrides if override not in mistyped]
    cfg, notes = _compose(rest, line.config_dir, list(mistyped.values()))
    for note in notes:
        command_line.tell(note)
    if line.wants_config:
        command_line.print_and_leave(to_yaml(cfg))
    return cfg, line.own


def config_of_run(
    argv: Sequence[str], *, command: str, sections: Sequence[str], extra: Mapping[str, str] | None = None
) -> tuple[RunConfig, dict[str, str]]:
    """As ``config_from_argv``, for commands on a run that exists: ``run_dir=DIR`` names it, its run.yaml is the config.

    Further KEY=VALUE change single values of ``sections``, those that the command reads (``evaluation.max_rows=0``);
    groups are not composed again. The returned config's ``run_dir`` is the DIR given, wherever the run was when it was
    frozen, and its ``model.trust_remote_code`` is this command's: a run may be a stranger's. Raises ConfigError,
    MissingInput if DIR or its run.yaml is not there.
    """
    own_keys = {**command_line.RUN_DIR, **(extra or {})}
    line = command_line.split(argv, own_keys, command_line.WITHOUT_GROUPS)
    if line.wants_help:
        command_line.print_and_leave(help_text(command, own_keys, sections=sections))
    problems = list(command_line.mistyped(line.overrides, own_keys, walk.keys_at(RunConfig)).values())
    if problems:
        raise ConfigError(problems)
    _refuse_unread(line.overrides, sections)
    run_dir = command_line.take_run_dir(line.own)
    config = literal(to_dict(load_config(run_dir / "run.yaml")))
    config["model"]["trust_remote_code"] = False
    parsed, problems = _parsed(line.overrides)
    problems += [text for _, text in set_values(config, map(_setting, parsed))]
    config["run_dir"] = str(run_dir)
    cfg = _judged(config, {}, problems)
    if problems := unread(to_dict(cfg), sections):
        raise ConfigError(problems)
    if line.wants_config:
        command_line.print_and_leave(to_yaml(cfg))
    return cfg, line.own


def _refuse_unread(overrides: Sequence[str], sections: Sequence[str]) -> None:
    """Refuse a value that would change nothing, because the command does not read its section."""
    others = [section for section in walk.keys_at(RunConfig) if section not in sections]
    keys = [command_line.key_of(override) for override in overrides]
    unread = [key for key in keys if key.partition(".")[0] in others]
    if unread:
        read = ", ".join(sections)
        raise ConfigError([f"{key}: this command does not read it; it reads of the config: {read}" for key in unread])


def _parsed(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a sentence about each of the others."""
    parsed = [override for override in map(_read, overrides) if override is not None]
    problems = [*unreadable(overrides, lambda word: _read(word) is not None), *twice(overrides)]
    for each in parsed:
        if each.is_sweep_override():
            problems.append(
                f"{each.input_line}: only sweeps take several values; write [a,b] for a list, or quote the text"
            )
        if each.package is not None:
            problems.append(f"{each.input_line}: a package (@) is not allowed here; write GROUP=NAME")
    return [each for each in parsed if not each.is_sweep_override() and each.package is None], problems


def _setting(override: Override) -> Setting:
    kind: Literal["set", "add", "remove"] = "add" if override.type is OverrideType.ADD else "set"
    kind = "remove" if override.is_delete() else kind
    return Setting(str(override.input_line), override.key_or_group, override.value(), kind)


def _read(word: str) -> Override | None:
    try:
        override = OverridesParser.create().parse_overrides([word])[0]
    except HydraException:
        return None
    return override if override.key_or_group else None


def _entries(override: Override) -> list[str]:
    """The entries a group override names, as text: ``zero=2`` -> ["2"]."""
    value = override.value()
    if isinstance(value, list):
        return [str(each) for each in value]
    if value is None or override.is_delete():
        return []
    return [value if isinstance(value, str) else str(override.input_line).partition("=")[2].strip()]  # as it was typed


def _for_hydra(choices: Sequence[Override]) -> list[str]:
    """The group overrides in Hydra's syntax. The last override of a group counts, as that of a value does."""
    listed = _listed_groups()
    words = []
    for group, names in {each.key_or_group: _entries(each) for each in choices}.items():
        quoted = [f"'{name}'" for name in names]  # quoted: Hydra takes 2 for a number and refuses it
        if names:
            one_or_list = quoted[0] if len(names) == 1 else f"[{','.join(quoted)}]"
            words.append(f"{'' if group in listed else '+'}{group}={one_or_list}")
        elif listed.get(group) is not None:
            words.append(f"~{group}")
    return words


def _listed_groups() -> dict[str, str | None]:
    """Group -> entry of the root's own defaults list; other groups are appended with Hydra's ``+``."""
    root = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    pairs = [pair for each in root["defaults"] if isinstance(each, dict) for pair in each.items()]
    return {group.removeprefix("optional "): entry for group, entry in pairs}


def _wrong_entries(override: Override, known: Mapping[str, list[str]]) -> list[str]:
    group = override.key_or_group
    return [wrong_entry(group, name, known) for name in _entries(override) if name not in known[group]]


def _reads_path(parsed: Sequence[Override]) -> bool:
    """Whether ``path=`` could be read; else a sentence says so already."""
    return any(each.key_or_group == "path" for each in parsed)


def _composed(roots: Sequence[Path], choices: list[str]) -> tuple[dict[str, Any], set[str]]:
    """Hydra's composition of the groups, not resolved; and the groups that ``choices`` or an entry names."""
    # hydra.initialize_config_dir takes one folder, and hydra.searchpath only appends: the user's entries would lose
    # to ours of the same name. So the loader is made here, which also leaves Hydra's global state alone.
    Plugins.instance()  # registers the readers of file:// and pkg://
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for root in roots:
        path.append("main", f"file://{root}")
    path.append("schema", "structured://")
    loader = ConfigLoaderImpl(path)
    try:
        config = loader.load_configuration("config", choices, RunMode.RUN, from_shell=False)
        named = loader.compute_defaults_list("config", choices, RunMode.RUN).overrides.override_choices
    except yaml.YAMLError as error:
        raise ConfigError(f"a yaml file cannot be read: {_one_line(error)}") from None
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:  # OSError: a file that is one value
        said = _one_line(error) or _one_line(error.__context__ or error)  # of some, Hydra keeps the cause alone
        raise ConfigError(not_composed(said, groups(roots))) from None
    except RecursionError:
        raise ConfigError(
            "the yaml groups cannot be composed: the defaults list of an entry leads back to it"
        ) from None
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}, set(named)


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _without_entry(config: dict[str, Any], own: dict[str, Any] | None) -> list[str]:
    """Take the default data entry out of ``config`` if the user brings sources; a sentence if so.

    ``own``: the config without that entry; None where the user named an entry.
    """
    data, mine = config.get("data"), (own or {}).get("data")
    if not isinstance(data, dict) or not isinstance(mine, dict):
        return []
    config["data"], left_out = without_entry(data, mine)
    if not left_out:
        return []
    entry, kept = _listed_groups()["data"], ", ".join(config["data"]["sources"])
    why = f"because the config has sources of its own: {kept}; data={entry} keeps both"
    return [f"data={entry}, the default entry, is left out ({', '.join(left_out)}), {why}"]


def _judged(
    config: dict[str, Any],
    known: Mapping[str, list[str]],
    problems: Sequence[str] = (),
    unsure: Unsure = Unsure(),  # noqa: B008 - frozen
) -> RunConfig:
    """Resolve interpolations and validate. Raises ConfigError for ``problems`` and all that is wrong beside them."""
    plain, broken = _resolved(config)
    learn_from(plain)
    astray = [group for group in plain if group in known and group not in walk.keys_at(RunConfig)]
    lines = [*problems, *broken.values()]
    lines += [f"{group}: an entry of {group}/ must begin with the line '# @package _global_'" for group in astray]
    lines += [line for line in (*unusable(plain), *showing(plain)) if line.partition(":")[0] not in broken]
    cfg, findings = judged({key: value for key, value in plain.items() if key not in astray})
    hidden = replace(unsure, keys=[*unsure.keys, *broken])
    lines += [finding.line for finding in findings if not hidden.hides(finding)]
    if lines or cfg is None:
        raise ConfigError(lines)
    return cfg


def _resolved(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without interpolations, and a sentence about each value that cannot be had; it is made empty."""
    broken = {key: f"{key}: it has no value; set it with {key}=VALUE" for key in sorted(missing(config))}
    for key in broken:
        make_empty(config, key)
    OmegaConf.register_new_resolver("oc.env", environment := Reading(), replace=True)
    if size_of(config) > RESOLVED_CHARACTERS:
        raise ConfigError("the interpolations of the config (${...}) grow to more than a config has; write values out")
    while True:
        try:
            plain = OmegaConf.to_container(DictConfig(config), resolve=True)
            if environment.reads:
                with environment.as_text():
                    keep(plain, OmegaConf.to_container(DictConfig(config), resolve=True))
            break
        except OmegaConfBaseException as error:
            key = str(error.full_key)
            text, settings = make_empty(config, key), list(walk.dotted_fields(RunConfig))
            broken[key] = unresolved(key, text, settings, itself="Recursive" in str(error))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, broken
