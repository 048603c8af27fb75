"""What the train command tells PyTorch's allocator, seen at the moment in which torch is first imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from conf.compose import ROOT
from train.process.allocator import NAMES

WATCHED = """
import json, os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps({key: value for key, value in os.environ.items() if key.endswith("_ALLOC_CONF")}))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = ["train", "experiment=demo"]
runpy.run_module("train", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, {"PYTORCH_CUDA_ALLOC_CONF": ""}),
    ],
)
def test_segments_grow_unless_someone_has_said_otherwise(given: dict[str, str], wanted: dict[str, str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in NAMES} | given
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=ROOT.parent, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted
