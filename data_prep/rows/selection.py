"""Which rows of a source's files are its records, and the task of each (``select`` in the config)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conf.durable import xxh3_of
from conf.errors import BadData
from conf.schema.style import SelectConfig
from data_prep.rows import files, raw
from data_prep.rows.conversation import Rejected
from data_prep.rows.record import Record
from data_prep.rows.shipped import shipped_or_own
from data_prep.rows.stage import Counts, Part

FOLDER = Path(__file__).resolve().parents[1] / "task_lists"


@dataclass(frozen=True)
class Select:
    """A source's ``select``, with the list of tasks read.

    ``rows`` chooses the source's records while files are read; as a stage it gives a record its task and rejects, as
    missing_field, a record that lacks a field it is chosen by.
    """

    where: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    exclude: tuple[str, ...] = ()
    """Patterns of tasks."""
    asked: SelectConfig | None = None
    """The setting that it was read from."""
    exclude_xxh3: str | None = None
    """Hash of the file with the list of tasks."""

    def __call__(self, record: Record, counts: Counts) -> Record:
        task = self.task_of(record.file, record.values)
        self.check(record.values)
        return replace(record, task=task)

    def identity(self) -> Part:
        if self.asked is None:
            return {}
        return {"source": {"select": asdict(self.asked) | {"exclude_xxh3": self.exclude_xxh3}}}

    def leaves_out_file(self, path: str) -> bool:
        """Whether ``exclude`` lists the task of a whole file."""
        return self.task is None and self._excludes(_stem(path))

    def task_of(self, path: str, values: Mapping[str, Any]) -> str:
        """The task of a record: its field ``task``, or else its file. Raises Rejected if it lacks that field."""
        if self.task is None:
            return _stem(path)
        if self.task not in values:
            fields = ", ".join(sorted(map(str, values)))
            raise Rejected("missing_field", f"no {self.task!r} (select.task) among {fields}")
        return str(values[self.task])

    def task_before_parsing(self, record: Record) -> str:
        """The task of a record whose text is not parsed yet: parsed only if the task stands in it. Raises Rejected."""
        return self.task_of(record.file, files.parse(record.text) if self.task else {})

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises Rejected if ``where`` names a field that ``values`` lacks: its source is then unknown."""
        for name in self.where:
            if name not in values:
                fields = ", ".join(sorted(map(str, values)))
                raise Rejected("missing_field", f"no {name!r} (select.where) among {fields}")

    def rows(self, path: str, encoding: str | None = None) -> Iterator[tuple[Record, bool]]:
        """(record, whether it is the source's) of every record of a file.

        A record that cannot be read is the source's: it goes to quarantine under its name.
        """
        chooses = bool(self.where) or (self.task is not None and bool(self.exclude))
        for record in raw.rows(path, encoding):
            yield record, not chooses or self._takes(record)

    def _takes(self, record: Record) -> bool:
        try:
            values = files.parse(record.text)
            self.check(values)
            if any(str(values[name]) != value for name, value in self.where.items()):
                return False
            return not self._excludes(self.task_of(record.file, values))
        except Rejected:
            return True

    def _excludes(self, task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in self.exclude)


def read(select: SelectConfig | None, key: str) -> Select:
    """The stage for ``select``, which stands at config ``key``. Raises MissingInput, BadData for the task list."""
    if select is None:
        return Select()
    if not select.exclude:
        return Select(dict(select.where), select.task, asked=select)
    path = locate(select.exclude, f"{key}.exclude")
    return Select(dict(select.where), select.task, _patterns(path), select, xxh3_of(path))


def locate(name: str, key: str) -> Path:
    """The file of a shipped task list (a plain name) or the user's own (a path). Raises MissingInput."""
    return shipped_or_own(FOLDER, ".txt", name, key)


def _patterns(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error}); write one pattern of tasks per line.") from error
    return tuple(word for line in lines for word in line.partition("#")[0].split())


def _stem(path: str) -> str:
    """The name of a file without folder and endings: task002_quoref.json.gz -> task002_quoref."""
    return Path(Path(path).name.removesuffix(".gz").removesuffix(".zst")).stem
