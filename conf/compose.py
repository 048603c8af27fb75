"""From the command line to a judged config. The only importer of hydra and omegaconf.

Plain Hydra stops at the first unknown key and refuses ``zero=2``. So: Hydra's parser reads the overrides, Hydra
composes the groups (their entries named as text), then the single values are set with struct mode off, and the schema
judges everything at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from conf.errors import ConfigError, MissingInput
from conf.frozen import load, save, to_yaml
from conf.help import help_text
from conf.problems import dotted, nearest
from conf.schema import RunConfig, to_dict, validate

__all__ = ["compose", "config_from_argv", "config_of_run", "groups", "load", "save", "search_path", "to_yaml"]

ROOT = Path(__file__).resolve().parent
"""The shipped config root: config.yaml and the group folders."""


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """Judge the config that ``overrides`` make of the root and its groups.

    ``config_dir`` holds the user's own groups and entries; of two entries with one name the user's wins. Raises
    ConfigError with all problems, MissingInput if ``config_dir`` is not a folder.
    """
    roots = search_path(config_dir)
    known = groups(roots)
    parsed = _parsed(overrides)
    choices = [each for each in parsed if each.key_or_group in known and not isinstance(each.value(), dict)]
    problems = [line for each in choices for line in _choice_problems(each, known)]
    if problems:
        raise ConfigError(problems)
    config = _composed(roots, _for_hydra(choices))
    _set_values(config, [each for each in parsed if each not in choices])
    return _judged(config, known)


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
    known = groups(search_path(line.config_dir))
    if line.wants_help:
        _print_and_leave(help_text(command, own_keys, known))
    command_line.refuse_mistyped(line.overrides, own_keys, {*walk.keys_at(RunConfig), *known})
    cfg = compose(line.overrides, line.config_dir)
    if line.wants_config:
        _print_and_leave(to_yaml(cfg))
    return cfg, line.own


def config_of_run(
    argv: Sequence[str], *, command: str, extra: Mapping[str, str] | None = None
) -> tuple[RunConfig, dict[str, str]]:
    """As ``config_from_argv``, for commands on a run that exists: ``run_dir=DIR`` names it, its run.yaml is the config.

    Further KEY=VALUE change single values (``evaluation.max_rows=0``); groups are not composed again. The returned
    config's ``run_dir`` is the DIR given, wherever the run was when it was frozen.
    """
    own_keys = {"run_dir": "folder of the run (required)", **(extra or {})}
    line = command_line.split(argv, own_keys)
    if line.wants_help:
        _print_and_leave(help_text(command, own_keys, {}))
    command_line.refuse_mistyped(line.overrides, own_keys, walk.keys_at(RunConfig))
    if not line.own.get("run_dir"):
        raise ConfigError("run_dir: missing; name the run's folder with run_dir=DIR")
    run_dir = line.own.pop("run_dir")
    config = DictConfig(to_dict(load(Path(run_dir) / "run.yaml")))
    _set_values(config, _parsed(line.overrides))
    config.run_dir = run_dir
    cfg = _judged(config, {})
    if line.wants_config:
        _print_and_leave(to_yaml(cfg))
    return cfg, line.own


def _print_and_leave(text: str) -> None:
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def search_path(config_dir: Path | None) -> list[Path]:
    """The folders in which group entries are looked up, first match first. Raises MissingInput."""
    if config_dir is None:
        return [ROOT]
    if not config_dir.is_dir():
        raise MissingInput(f"--config-dir: {config_dir} is not a folder; name the folder that holds your own groups")
    if (config_dir / "config.yaml").exists() and config_dir.resolve() != ROOT:
        raise ConfigError(
            f"--config-dir: {config_dir}/config.yaml would replace Corral's root; "
            "make it an entry of its own, such as experiment/mine.yaml"
        )
    return list(dict.fromkeys([config_dir.resolve(), ROOT]))


def groups(roots: Sequence[Path]) -> dict[str, list[str]]:
    """Group name -> its entries, over all ``roots``."""
    found: dict[str, set[str]] = {}
    for root in roots:
        for path in root.glob("*/**/*.yaml"):
            group, *rest = path.relative_to(root).with_suffix("").parts
            found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(names) for group, names in sorted(found.items())}


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            parsed.append(parser.parse_overrides([text])[0])
        except HydraException:
            problems.append(_unreadable(text))
            continue
        if parsed[-1].is_sweep_override():
            problems.append(f"{text}: several choices are for sweeps; write [a,b] for a list, or quote the text")
        if parsed[-1].package is not None:
            problems.append(f"{text}: a package (@) cannot be given here; write GROUP=NAME")
    if problems:
        raise ConfigError(problems)
    return parsed


def _unreadable(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: not KEY=VALUE; write GROUP=NAME or KEY=VALUE (--help lists them)"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f"{text}: the value cannot be read as it stands; quote it twice: '{key}=\"{escaped}\"'"


def _entries(override: Override) -> list[str]:
    """The entries a group override names, as text: ``zero=2`` -> ["2"]."""
    value = override.value()
    if isinstance(value, list):
        return [str(each) for each in value]
    if value is None or override.is_delete():
        return []
    return [value if isinstance(value, str) else _typed(override)]


def _typed(override: Override) -> str:
    """What the user typed behind the equals sign."""
    return str(override.input_line).partition("=")[2].strip()


def _for_hydra(choices: Sequence[Override]) -> list[str]:
    """Group overrides in Hydra's own words. Of several for one group the last counts, as with values."""
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
    root = yaml.safe_load((ROOT / "config.yaml").read_text())
    pairs = [pair for each in root["defaults"] if isinstance(each, dict) for pair in each.items()]
    return {group.removeprefix("optional "): entry for group, entry in pairs}


def _choice_problems(override: Override, known: Mapping[str, list[str]]) -> Iterator[str]:
    group = override.key_or_group
    for name in _entries(override):
        if name not in known[group]:
            guess, every = nearest(name, known[group]), ", ".join(known[group])
            yield f"{group}={name}: no such entry; did you mean {group}={guess}? ({group} has: {every})"


def _composed(roots: Sequence[Path], choices: list[str]) -> DictConfig:
    """Hydra's composition of the groups, struct mode off."""
    # hydra.initialize_config_dir takes one folder, and hydra.searchpath only appends: the user's entries would lose
    # to ours of the same name. So the loader is made here, which also leaves Hydra's global state alone.
    Plugins.instance()  # registers the readers of file:// and pkg://
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for root in roots:
        path.append("main", f"file://{root}")
    path.append("schema", "structured://")
    try:
        config: DictConfig = ConfigLoaderImpl(path).load_configuration("config", choices, RunMode.RUN, from_shell=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"a yaml file cannot be read: {_one_line(error)}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"the yaml groups cannot be put together: {_one_line(error)}") from None
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _set_values(config: DictConfig, values: Sequence[Override]) -> None:
    """Set or take away single values; raises ConfigError with every one that cannot be."""
    problems: list[str] = []
    for override in values:
        try:
            problems += _set_one(config, override)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, IndexError) as error:
            problems.append(f"{override.input_line}: cannot be set: {_one_line(error)}")
    if problems:
        raise ConfigError(problems)


def _set_one(config: DictConfig, override: Override) -> list[str]:
    key = override.key_or_group
    path = tuple(key.split("."))
    if override.is_delete():
        return _delete(config, path)
    is_there = OmegaConf.select(config, key, throw_on_missing=False) is not None
    if override.type is OverrideType.ADD and is_there and isinstance(override.value(), dict):
        return [f"+{key}: it is there already; leave out the + to change it"]
    OmegaConf.update(config, key, _value(config, override, path), merge=True, force_add=True)
    return []


def _value(config: DictConfig, override: Override, path: walk.Path) -> Any:
    """The value to set: what Hydra parsed, but the text as typed where the schema wants text (``name=1e3``)."""
    value = override.value()
    if isinstance(value, int | float):
        annotation = walk.annotation_at(RunConfig, path, OmegaConf.to_container(config, resolve=False))
        if annotation is not None and walk.is_text(annotation):
            return _typed(override)
    return value


def _delete(config: DictConfig, path: tuple[str, ...]) -> list[str]:
    parent = OmegaConf.select(config, dotted(path[:-1])) if path[:-1] else config
    if isinstance(parent, DictConfig) and path[-1] in parent:
        del parent[path[-1]]
        return []
    keys = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    near = f"; did you mean ~{dotted((*path[:-1], nearest(path[-1], keys)))}?" if keys else ""
    return [f"~{dotted(path)}: there is nothing to take away{near}"]


def _judged(config: DictConfig, known: Mapping[str, list[str]]) -> RunConfig:
    """Resolve interpolations and validate. Raises ConfigError for what cannot be resolved or is wrong."""
    try:
        missing = OmegaConf.missing_keys(config)
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"an interpolation cannot be resolved: {_one_line(error)}") from None
    if missing:
        raise ConfigError([f"{key}: must be given, with {key}=VALUE" for key in sorted(missing)])
    assert isinstance(plain, dict)
    raw = {str(key): value for key, value in plain.items()}
    astray = [group for group in raw if group in known and group not in walk.keys_at(RunConfig)]
    if astray:
        raise ConfigError(
            [f"{group}: an entry of {group}/ must begin with the line '# @package _global_'" for group in astray]
        )
    if raw.get("run_dir") == "":
        raise ConfigError("run_dir: empty; name a folder, such as run_dir=outputs/mine")
    return validate(raw)
