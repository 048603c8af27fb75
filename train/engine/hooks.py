"""Fragment hooks: named functions that change the owned fragments after every update.

A hook is for rules that act on each weight alone: a pull towards the weights at the start, an importance-weighted
penalty, a running average. The contract:

- **When.** ``apply(fragment, lr)`` runs once per update and fragment, right after AdamW has changed the fp32 master
  weights and before DeepSpeed rounds them to bf16 and gathers them. The weights that the model computes with therefore
  follow from the changed master weights under every ZeRO stage, with no second copy and no further collective. A step
  with non-finite gradients is skipped, and hooks with it. Several hooks run in the order given.
- **What.** ``apply`` changes ``fragment.weight``, ``fragment.moments`` and ``fragment.extras`` in place and returns
  nothing. It must be elementwise: element i of the result depends on element i of these tensors, ``lr`` and constants
  only. A fragment is an arbitrary range of a parameter, so a mean or a norm over it means nothing, and a collective
  hangs. Under this rule the result does not depend on the number of ranks or the stage.
- **State.** A hook keeps no state of its own. Instead it owns extras: fp32 tensors by name, as long as the weight, on
  the device of the weight. ``FragmentHook.extras`` maps the name to a function of the fragment that gives the first
  value; it is called once, when the engine is built, and the engine copies the result. Checkpoints hold the extras by
  name beside weight and moments, and a resume restores them on any number of ranks and any stage. Each extra takes 4
  bytes per trainable parameter, divided over the ranks as the master weights are.

Without hooks nothing is registered, and a step costs what it did. A mistake in a hook raises InternalError, which
names the hook, the parameter and the line.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from conf.errors import ConfigError, InternalError
from train.engine.fragments import MOMENTS, Fragment

MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a wrong function raises. A device without memory (a RuntimeError too) keeps its own exit code."""


@dataclass(frozen=True)
class FragmentHook:
    name: str
    """For messages."""
    apply: Callable[[Fragment, float], None]
    """``apply(fragment, lr)`` changes the fragment's tensors in place, elementwise."""
    extras: Mapping[str, Callable[[Fragment], torch.Tensor]] = field(default_factory=dict)
    """Name -> the first value of an extra: 1-D, as long as the fragment."""


def check_names(hooks: Sequence[FragmentHook]) -> None:
    """Raise InternalError for names of extras that a checkpoint cannot tell apart."""
    names = Counter(name for hook in hooks for name in hook.extras)
    for hook in hooks:
        for name in hook.extras:
            if names[name] > 1 or name in ("weight", *MOMENTS) or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InternalError(
                    f"fragment hook {hook.name}: {name!r} cannot be the name of an extra; give it a name in lower case "
                    f"that is neither {', '.join(('weight', *MOMENTS))} nor the name of another extra"
                )


@torch.no_grad()
def first_extras(hooks: Sequence[FragmentHook], fragment: Fragment) -> dict[str, torch.Tensor]:
    """The extras of ``fragment`` before the first step. Raises InternalError for a value of another shape."""
    extras = {}
    for hook in hooks:
        for name, first in hook.extras.items():
            with _blamed(hook, fragment):
                value: object = first(fragment)
            if not isinstance(value, torch.Tensor) or value.shape != fragment.weight.shape:
                given = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise _mistake(hook, fragment, f"extra {name} must have shape ({fragment.numel},), and is {given}")
            extras[name] = torch.empty_like(fragment.weight).copy_(value)
    return extras


@torch.no_grad()
def apply_hooks(hooks: Sequence[FragmentHook], fragments: Iterable[Fragment], lr: float) -> int:
    """Apply all ``hooks`` to each fragment in their order; returns the number of fragments.

    Raises InternalError for a hook that raises, or that replaces or resizes a tensor instead of changing it in place.
    """
    count = 0
    for fragment in fragments:
        for hook in hooks:
            before = {kind: (tensor, tensor.shape, tensor.data_ptr()) for kind, tensor in fragment.tensors.items()}
            with _blamed(hook, fragment):
                hook.apply(fragment, lr)
            _check_same_tensors(hook, fragment, before)
        count += 1
    return count


def _check_same_tensors(
    hook: FragmentHook, fragment: Fragment, before: Mapping[str, tuple[torch.Tensor, torch.Size, int]]
) -> None:
    after = fragment.tensors
    for kind in sorted(before.keys() | after.keys()):
        if kind not in before or kind not in after:
            raise _mistake(hook, fragment, f"it added or removed {kind}; name it in the extras of the hook")
        tensor, shape, address = before[kind]
        if after[kind] is not tensor or tensor.shape != shape or tensor.data_ptr() != address:
            change = f"{tuple(shape)} became {tuple(after[kind].shape)}"
            raise _mistake(hook, fragment, f"it replaced {kind} ({change}); change the elements in place")


def check_extras(hooks: Sequence[FragmentHook], stored: Sequence[str]) -> None:
    """Raise ConfigError (78) unless a checkpoint with the extras ``stored`` holds exactly those that ``hooks`` own."""
    owners = {name: hook.name for hook in hooks for name in hook.extras}
    problems = [
        f"this run's checkpoint holds no {name!r} beside its weights, which the fragment hook {owners[name]} needs: "
        "the run was started without this hook. Continue without it, or start a new run under another name or run_dir"
        for name in sorted(owners.keys() - set(stored))
    ]
    problems += [
        f"this run's checkpoint holds {name!r} beside its weights, and no fragment hook of this run owns it: the next "
        "checkpoint would lose it. Continue with its hook, or start a new run under another name or run_dir"
        for name in sorted(set(stored) - owners.keys())
    ]
    if problems:
        raise ConfigError(problems)


@contextmanager
def _blamed(hook: FragmentHook, fragment: Fragment) -> Iterator[None]:
    """Inside it, a mistake is one of ``hook`` on ``fragment``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except MISTAKES as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame for frame in frames if frame.filename != __file__), frames[-1])
        cause = f"{type(error).__name__}: {error} ({line.filename}, line {line.lineno})"
        raise _mistake(hook, fragment, cause) from error


def _mistake(hook: FragmentHook, fragment: Fragment, cause: str) -> InternalError:
    last = fragment.start + fragment.numel - 1
    return InternalError(
        f"fragment hook {hook.name} failed on {fragment.name}, elements {fragment.start} to {last}: {cause}. "
        "Correct the hook"
    )
