"""The only room that knows DeepSpeed: what it divides by, how it shards, where it hides the optimizer's state."""

from train.engine.engine import Engine, StepOutcome, init_distributed, loading_context
from train.engine.fragments import Fragment
from train.engine.settings import deepspeed_settings

__all__ = ["Engine", "Fragment", "StepOutcome", "deepspeed_settings", "init_distributed", "loading_context"]
