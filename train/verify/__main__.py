"""``python -m train.verify experiment=NAME`` proves that a step does not depend on how its batch is cut up."""

from __future__ import annotations

import sys

import torch

from conf.compose import config_from_argv
from conf.errors import ConfigError, leave_with_code
from train.plan import settle
from train.process.causes import causes_named
from train.verify.comparisons import OWN, verify


def main() -> int:
    cfg, own = config_from_argv(sys.argv[1:], command="python -m train.verify", extra=OWN)
    precision = own.get("precision", "fp32")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision} is unknown; give precision=fp32 or precision=bf16")
    cfg = settle(cfg, nodes=cfg.cluster.nodes, per_node=cfg.cluster.gpus_per_node)
    torch.manual_seed(0)
    with causes_named():
        return 0 if verify(cfg, sys.argv[1:], precision) else 1  # type: ignore[arg-type]


if __name__ == "__main__":
    leave_with_code(main)
