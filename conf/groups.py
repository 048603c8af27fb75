"""The folders of yaml groups, the shipped ones and the user's, and which entries they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError, MissingInput
from conf.foreign.yaml_text import refuse_growth

ROOT = Path(__file__).resolve().parent
"""The shipped config root: config.yaml and the group folders."""


def search_path(config_dir: Path | None, root: Path = ROOT) -> list[Path]:
    """The folders that are searched for group entries; the first match counts. Raises MissingInput, ConfigError."""
    if config_dir is None:
        return [root]
    if not config_dir.is_dir():
        raise MissingInput(f"--config-dir: {config_dir} is not a folder; name the folder that holds your own groups")
    if (config_dir / "config.yaml").exists() and config_dir.resolve() != root:
        raise ConfigError(
            f"--config-dir: {config_dir}/config.yaml would replace Corral's root; "
            "make it an entry of its own, such as experiment/mine.yaml"
        )
    for path in config_dir.glob("*/**/*.yaml"):
        refuse_growth(path)
    return list(dict.fromkeys([config_dir.resolve(), root]))


def groups(roots: Sequence[Path]) -> dict[str, list[str]]:
    """Group name -> its entries, over all ``roots``."""
    found: dict[str, set[str]] = {}
    for root in roots:
        for path in root.glob("*/**/*.yaml"):
            group, *rest = path.relative_to(root).with_suffix("").parts
            found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(names) for group, names in sorted(found.items())}
