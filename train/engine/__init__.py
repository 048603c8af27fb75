"""The only room that knows DeepSpeed: how it scales losses, shards state and stores the optimizer's tensors."""

from train.engine.engine import Engine, StepOutcome, init_distributed, loading_context
from train.engine.fragments import Fragment
from train.engine.hooks import FragmentHook
from train.engine.settings import deepspeed_settings

__all__ = [
    "Engine",
    "Fragment",
    "FragmentHook",
    "StepOutcome",
    "deepspeed_settings",
    "init_distributed",
    "loading_context",
]
