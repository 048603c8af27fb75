"""``python -m data_prep data=NAME [overrides]``: sources -> prepared corpus, and a report. Restartable."""

from __future__ import annotations

import sys

from rich.console import Console

from conf.compose import config_from_argv
from conf.errors import leave_with_code
from data_prep import report
from data_prep.prepare import prepare


def main() -> None:
    """Prepare, then write and print the report."""
    argv = sys.argv[1:]
    cfg, _ = config_from_argv(argv, command="data_prep")
    path = prepare(cfg, argv=argv)
    report.show(report.write(cfg, path), Console())
    print(f"\ncorpus      {path}\nreport      {path / 'report.html'}\nquarantine  {path / 'quarantine.jsonl'}")


if __name__ == "__main__":
    leave_with_code(main)
