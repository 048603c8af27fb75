"""Write a run's model as a folder that Hugging Face libraries load: run_dir/export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from conf.command import whole_number
from conf.compose import config_of_run
from conf.errors import ConfigError, leave_with_code
from conf.schema import RunConfig

KEYS = {
    "checkpoint": "step of a checkpoint; default: the newest that verifies",
    "merge": (
        "true (default): a whole model that loads anywhere, adapters folded into the base;\n"
        "false: what was trained alone (PEFT's folder), the only way for prompt, prefix and bottleneck\n"
        "tuning, which cannot be folded into a weight"
    ),
}
SECTIONS = ("model", "data", "compute")
"""The sections of the run's config that an export reads: where the base and the corpus are now, and the threads."""


def asked_for(argv: Sequence[str]) -> tuple[RunConfig, int | None, bool]:
    """The run's config, checkpoint and merge of the command line. Raises ConfigError or MissingInput."""
    cfg, own = config_of_run(argv, command="train.export", sections=SECTIONS, extra=KEYS)
    merge, step = own.get("merge", "true").lower(), None
    problems = [] if merge in ("true", "false") else [f"merge={merge}: must be true or false"]
    try:
        step = whole_number(own, "checkpoint")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return cfg, step, merge == "true"


def main() -> int:
    cfg, step, merge = asked_for(sys.argv[1:])
    from train.export.folder import export  # torch only now: a typo is told within a second
    from train.process.causes import causes_named

    with causes_named():
        folder = export(Path(cfg.run_dir), step=step, merge=merge, cfg=cfg)
    size = sum(file.stat().st_size for file in folder.iterdir())
    content = "merged model" if merge else "adapters (base not included)"
    print(f"{folder}  {content}, {size / 1e6:.1f} MB, written from {cfg.run_dir}")
    print(f"next: python -m train.chat model={folder}")
    return 0


if __name__ == "__main__":
    leave_with_code(main)
