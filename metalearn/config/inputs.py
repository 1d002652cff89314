"""Inputs that a model cannot read: integers for layers that multiply floats, and floats for tables
that are looked up. Known before training from one sampled task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learn_keys, learner_inputs
from metalearn.models.functional import require_floats
from metalearn.rng import fold_in
from metalearn.types import Episode, Learner, Method, TaskSource

KEY = fold_in(0, "inputs")


def input_problems(
    source: TaskSource, learner: Learner, method: Method
) -> tuple[tuple[str, str], ...]:
    """Return why the model, and with it the method, cannot read the inputs of the tasks.

    Only integers for a model without a look-up, and floats for one with, are tried: with the model,
    and then with the method, which may not call the model, or convert inputs first."""
    if source.spec.objective is not None:
        return ()
    episode = source.sample(KEY, 1)
    x = episode.support.x[0]
    if x.is_floating_point() != learner.integers:
        return ()
    params = learner.init(KEY)
    error = _error_of(learner.apply, params, x)
    if error is None or _error_of(_learn, method, episode) is None:
        return ()
    if isinstance(error, ConfigError):
        return error.problems
    if x.is_floating_point() or _error_of(learner.apply, params, x.to(source.spec.dtype)):
        return ()  # for another reason than the type, which training reports
    sentences = _error_of(require_floats, x)
    return sentences.problems if isinstance(sentences, ConfigError) else ()


def _learn(method: Method, episode: Episode) -> None:
    key = learn_keys(episode.info["key"], 0)
    method.learn(method.init(KEY).meta, *learner_inputs(episode), (0,), key=key)


def _error_of(function: Callable[..., Any], *args: Any) -> Exception | None:
    """Return the exception that function(*args) raises; None if it returns."""
    try:
        with torch.no_grad():
            function(*args)
    except Exception as error:
        return error
    return None
