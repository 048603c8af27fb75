"""``python -m data_prep data=NAME [overrides]``: sources -> prepared corpus, and a report. Restartable."""

from __future__ import annotations

import sys

from conf.compose import config_from_argv
from conf.errors import leave_with_code
from conf.safety.console import SafeConsole
from data_prep.prepare import prepare
from data_prep.report import write_report
from data_prep.report.terminal import show


def main() -> None:
    """Prepare, then write and print the report."""
    argv = sys.argv[1:]
    cfg, _ = config_from_argv(argv, command="data_prep")
    path = prepare(cfg, argv=argv)
    show(write_report(cfg, path), SafeConsole())
    print(f"\ncorpus      {path}\nreport      {path / 'report.html'}\nquarantine  {path / 'quarantine.jsonl'}")


if __name__ == "__main__":
    leave_with_code(main)
