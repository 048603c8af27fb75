"""Memory, time and communication of a run before it starts, in closed formulas; torch-free, because launch plans.

``memory`` and ``activations`` say what a rank needs, ``communication`` what its ranks exchange, ``speed`` how long it
takes, ``choice`` which stage, recomputation and micro-batch to take, ``answer`` puts them together.
"""

from train.plan.answer import Corpus, Plan, plan
from train.plan.choice import asks_memory, is_open
from train.plan.generation import WORTH_SAYING_SECONDS, Generation, generation, refuse_slow_answers
from train.plan.global_size import BatchSize, batch_size, refuse_empty_steps, size_chosen
from train.plan.memory import GIB, Memory, accumulation_steps, check_heads, number, readers, slice_tokens
from train.plan.model_config import read_model_config
from train.plan.settle import corpus_of, settle

__all__ = [
    "GIB",
    "WORTH_SAYING_SECONDS",
    "BatchSize",
    "Corpus",
    "Generation",
    "Memory",
    "Plan",
    "accumulation_steps",
    "asks_memory",
    "batch_size",
    "check_heads",
    "corpus_of",
    "generation",
    "is_open",
    "number",
    "plan",
    "read_model_config",
    "readers",
    "refuse_empty_steps",
    "refuse_slow_answers",
    "settle",
    "size_chosen",
    "slice_tokens",
]
