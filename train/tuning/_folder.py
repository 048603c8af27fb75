"""How the folder that a method saved is recognised: by a JSON file in it, which also names the base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folder:
    """What marks a folder as saved by one method."""

    config: str
    """Name of the JSON file. It has the key ``base_model_name_or_path``: the folder or hub id of the base."""
    kind: str = ""
    """Its ``peft_type``, where several methods write a file of this name."""

    def is_there(self, folder: Path) -> bool:
        return (folder / self.config).is_file()

    def read(self, folder: Path) -> dict[str, Any]:
        """The content of the JSON file. Raises OSError or ValueError."""
        return dict(json.loads((folder / self.config).read_text(encoding="utf-8")))

    def fits(self, folder: Path) -> bool:
        """Whether this method saved ``folder``. Raises ValueError for a file that is no JSON."""
        return self.is_there(folder) and self.read(folder).get("peft_type", "") == self.kind
