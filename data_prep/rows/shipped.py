"""Files that Corral ships by name and that users write too: template sets, lists of tasks."""

from __future__ import annotations

from pathlib import Path

from conf.errors import MissingInput


def shipped_or_own(folder: Path, ending: str, name: str, key: str) -> Path:
    """``folder``/``name`` + ``ending`` if ``name`` is a plain name, else the file at ``name``. Raises MissingInput."""
    plain = "/" not in name and not name.endswith(ending)
    path = folder / f"{name}{ending}" if plain else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob(f"*{ending}")))
        raise MissingInput(f"{key}: no such file: {path}; give a path to a {ending} file, or one of {known}.")
    return path
