"""Which parameters of a module get a gradient, in evaluation and in training mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn import noise
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.models.external.functions import ATTENTION, DRAWS, Functions
from metalearn.models.external.module import Inputs, Output, call_module, copy_module, entry
from metalearn.types import Key

_SHOWN = 4  # parameters that a warning names


def check_gradients(
    quiet: nn.Module, noisy: nn.Module, x: Tensor, inputs: Inputs, output: Output, key: Key
) -> None:
    """Raise ConfigError for parameters that get a gradient in training mode only.

    `quiet` is in evaluation mode, in which new tasks are learned; `noisy` in the modes in which
    the module was passed. Warns of parameters that get no gradient in either."""
    with Functions(ATTENTION):
        in_evaluation = _reached(quiet, x, inputs, output)
    in_training = in_evaluation
    if any(part.training for part in noisy.modules()):
        with noise.noise_from(key) as scope, Functions(DRAWS):
            in_training = _reached(noisy, x, inputs, output)
        lost = _lost(in_training, in_evaluation)
        if scope.draws:  # a gain of noise is rightly part of training steps alone
            lost = [name for name in lost if _matters(quiet, name, x, inputs, output)]
        if lost:
            text = "gets a gradient in training mode, but not in evaluation mode, in which new"
            text += " tasks are learned: compute with it, and record gradients, in both modes"
            raise ConfigError(*((name, text) for name in lost))
    if in_evaluation is None or in_training is None:
        return
    names = [name for name, value in quiet.named_parameters() if value.requires_grad]
    if idle := [name for name in names if name not in in_evaluation | in_training]:
        listing = ", ".join(idle[:_SHOWN]) + (", ..." if len(idle) > _SHOWN else "")
        text = "%d parameters of %s get no gradient from the outputs and are not learned: %s"
        log.warning(text, len(idle), type(noisy).__name__, listing)


def _lost(in_training: set[str] | None, in_evaluation: set[str] | None) -> list[str]:
    if in_training is None or in_evaluation is None:
        return []
    return sorted(in_training - in_evaluation)


def _reached(module: nn.Module, x: Tensor, inputs: Inputs, output: Output) -> set[str] | None:
    """Return the trainable parameters that get a gradient; None if that cannot be computed."""
    module = copy_module(module)
    params = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not params:
        return set()
    with torch.enable_grad():
        out = entry(call_module(module, x.clone(), inputs), output)
        if not out.requires_grad:
            return set()
        try:
            total = out.abs().sum()
            grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
        except RuntimeError:  # of an operator without a derivative
            return None
    return {name for name, grad in zip(params, grads, strict=True) if grad is not None}


def _matters(module: nn.Module, name: str, x: Tensor, inputs: Inputs, output: Output) -> bool:
    """Return whether the output depends on the values of a parameter."""
    module = copy_module(module)
    with torch.no_grad(), Functions(ATTENTION):
        before = entry(call_module(module, x.clone(), inputs), output)
        module.get_parameter(name).mul_(1.5).add_(0.1)
        after = entry(call_module(module, x.clone(), inputs), output)
    return not torch.allclose(before, after, equal_nan=True)
