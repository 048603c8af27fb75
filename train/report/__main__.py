"""``python -m train.report run_dir=DIR``: write run_dir/report.html and print its path."""

from __future__ import annotations

import sys
from pathlib import Path

from conf.errors import leave_with_code
from train.arguments import run_arguments
from train.report import write_report

USAGE = """usage: python -m train.report run_dir=DIR
  run_dir  folder of a run, finished or not; the page is DIR/report.html"""


def main() -> int:
    arguments = run_arguments(sys.argv[1:], ("run_dir",), USAGE)
    print(write_report(Path(arguments["run_dir"])))
    return 0


if __name__ == "__main__":
    leave_with_code(main)
