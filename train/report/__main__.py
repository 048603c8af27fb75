"""Write the page report.html of a run, finished or not, into the folder of the run, and print its path."""

from __future__ import annotations

import sys

from conf.command import run_dir_from_argv
from conf.errors import leave_with_code
from train.report import write_report


def main() -> int:
    run_dir, _ = run_dir_from_argv(sys.argv[1:], command="train.report")
    print(write_report(run_dir))
    return 0


if __name__ == "__main__":
    leave_with_code(main)
