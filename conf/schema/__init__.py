"""Every setting of a run: its type, its unit, what is allowed, and why its default is what it is.

One dataclass per section, one yaml group per section. All are frozen, strict (no silent conversion) and refuse keys
they do not know. ``conf/judge.py`` judges a plain dict against them; rules that need two settings live in
``conf/checks/``. Nothing here reads a file or imports anything heavy.
"""

from conf.schema.data import DataConfig, DecontaminateConfig, RateConfig, SourceConfig, StopConfig
from conf.schema.methods import (
    BottleneckTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    Tuning,
)
from conf.schema.objectives import Objective, SftObjective
from conf.schema.run import (
    AttentionConfig,
    BatchConfig,
    CheckpointConfig,
    ClusterConfig,
    ComputeConfig,
    EvaluationConfig,
    GuardConfig,
    ModelConfig,
    OptimConfig,
    ResumeConfig,
    RunConfig,
    ScheduleConfig,
    TrackerConfig,
    ZeroConfig,
    to_dict,
)

__all__ = [
    "AttentionConfig",
    "BatchConfig",
    "BottleneckTuning",
    "CheckpointConfig",
    "ClusterConfig",
    "ComputeConfig",
    "DataConfig",
    "DecontaminateConfig",
    "EvaluationConfig",
    "FullTuning",
    "GuardConfig",
    "Ia3Tuning",
    "LoraTuning",
    "ModelConfig",
    "Objective",
    "OptimConfig",
    "PrefixTuning",
    "PromptTuning",
    "RateConfig",
    "ResumeConfig",
    "RunConfig",
    "ScheduleConfig",
    "SftObjective",
    "SourceConfig",
    "StopConfig",
    "TrackerConfig",
    "Tuning",
    "ZeroConfig",
    "to_dict",
]
