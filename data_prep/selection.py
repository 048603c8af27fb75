"""Which rows of a source's files are its own, and of which task each is (``select`` in the config)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conf.errors import BadData
from conf.style import SelectConfig
from data_prep import files, raw, template_set
from data_prep.conversation import Rejected
from data_prep.files import RawRow

FOLDER = Path(__file__).resolve().parent / "task_lists"


@dataclass(frozen=True)
class Selection:
    """A source's ``select``, with the list of tasks read. Plain values, so that it travels between processes."""

    where: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    exclude: tuple[str, ...] = ()

    def leaves_out_file(self, path: str) -> bool:
        """Whether a whole file is of a task that is left out."""
        return self.task is None and self._excludes(_stem(path))

    def task_of(self, path: str, row: Mapping[str, Any]) -> str:
        """The task of a row: what ``task`` names in it, or its file. Raises Rejected if the field is not there."""
        if self.task is None:
            return _stem(path)
        if self.task not in row:
            raise Rejected("missing_field", f"no {self.task!r} (select.task) among {', '.join(sorted(map(str, row)))}")
        return str(row[self.task])

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises Rejected if ``where`` asks for a field that the row lacks: it cannot be told whose it is."""
        for name in self.where:
            if name not in row:
                raise Rejected("missing_field", f"no {name!r} (select.where) among {', '.join(sorted(map(str, row)))}")

    def rows(self, path: str) -> Iterator[tuple[RawRow, bool]]:
        """(row, whether it is the source's) for each row of a file. A row that cannot be read is: it gets a name."""
        chooses = bool(self.where) or (self.task is not None and bool(self.exclude))
        for row in raw.rows(path):
            yield row, not chooses or self._takes(path, row.text)

    def _takes(self, path: str, text: str) -> bool:
        try:
            row = files.parse(text)
            self.check(row)
            if any(str(row[name]) != value for name, value in self.where.items()):
                return False
            return not self._excludes(self.task_of(path, row))
        except Rejected:
            return True

    def _excludes(self, task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in self.exclude)


def read(select: SelectConfig | None, key: str) -> Selection:
    """The selection of ``select``, which stands at config ``key``. Raises MissingInput, BadData for the task list."""
    if select is None:
        return Selection()
    patterns = _patterns(locate(select.exclude, f"{key}.exclude")) if select.exclude else ()
    return Selection(dict(select.where), select.task, patterns)


def locate(name: str, key: str) -> Path:
    """The file of a shipped task list (a plain name) or the user's own (a path). Raises MissingInput."""
    return template_set.shipped_or_own(FOLDER, ".txt", name, key)


def _patterns(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error}); write one pattern of tasks per line.") from error
    return tuple(word for line in lines for word in line.partition("#")[0].split())


def _stem(path: str) -> str:
    """The file's name without folder and endings: task002_quoref.json.gz -> task002_quoref."""
    return Path(Path(path).name.removesuffix(".gz").removesuffix(".zst")).stem
