"""The installed command ``corral``: the same as ``python -m launch``, with its sentences and exit codes."""

from __future__ import annotations

from typing import NoReturn

from conf.errors import leave_with_code
from launch.__main__ import main


def run() -> NoReturn:
    leave_with_code(main)
