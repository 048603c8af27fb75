"""The GPU tests as jobs, so that each fits into ten minutes: ``python -m benchmarks.gpu_tests JOB FOLDER DEVICE``."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.gpu_jobs import TESTS
from benchmarks.gpu_worker import versions, write

ROOT = Path(__file__).parents[1]


def main(name: str, folder: Path, device: str) -> int:
    """Run the tests of the job. On a GPU all must pass; without one they are collected and skipped."""
    told = folder / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *TESTS[name], f"--junitxml={told}"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        return code
    (suite,) = ET.parse(told).getroot().iter("testsuite")
    count = {key: float(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    figures = {"tests passed": count["tests"] - count["skipped"], "tests skipped": count["skipped"]}
    write(folder, name, {"versions": versions(device), "figures": figures, "notes": []})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3]))
