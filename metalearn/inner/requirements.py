"""What a method requires of its tasks, and what is required of its functions of one task.

One sentence for each refusal."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.losses import Criterion, criterion
from metalearn.padding import adapt_with_example_weights, predict_with_example_weights
from metalearn.tree import leaves
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Meta

Function = Callable[..., Any]
Init = Callable[[Key], Meta]
TORCH = str(Path(torch.__file__).parent)
UNDER_VMAP = "random operation while in randomness error mode"  # in torch's own message


def query_loss(spec: EpisodeSpec) -> Criterion:
    """The loss of queries; tasks without them are refused, as it would be the mean of none."""
    if spec.queries < 1:
        text = f"must be >= 1 (got {spec.queries}): the method minimises the query loss"
        raise ConfigError(("task.queries", f"{text}; reptile uses only support sets"))
    return criterion(spec)


def require_classes(name: str, spec: EpisodeSpec) -> None:
    """Refuse regression where a method compares classes."""
    if not spec.classification:
        text = f"{name} needs a classification task (got {spec.kind})"
        raise ConfigError(("method.name", f"{text}; use fine_tune or maml for regression"))


def require_head(name: str, learner: Learner, linear: bool = True) -> None:
    """Refuse a network without a head of its own, and with `linear` one that goes on behind it."""
    if learner.readout == "none":
        text = f"has no head, which {name} needs: from_module(net, spec, head='new') adds one"
        raise ConfigError(("model", text))
    if linear and learner.readout == "module":
        text = f"has layers after its head, which {name} would skip: make the head the last layer"
        raise ConfigError(("model", text))


def require_random_start(name: str, learner: Learner) -> None:
    """Refuse a network that starts from the same weights for every key."""
    if not learner.random_start:
        text = (
            f"starts every task from the same weights, but {name} needs random initialization: pass"
        )
        raise ConfigError(
            ("model", f"{text} a class or function that creates it, or init='uniform'")
        )


def require_no_noise(name: str, learner: Learner) -> None:
    """Refuse a network that draws noise in training steps where a method has no keys for it."""
    if learner.draws_noise:
        text = f"samples noise in training, such as dropout, but {name} has no keys for it"
        raise ConfigError(("model", f"{text}: use net.eval() to disable it"))


def require_no_padding(name: str, spec: EpisodeSpec, *batches: Batch) -> None:
    """Refuse tasks of variable size and weighted examples where a method has no use for weights."""
    if spec.padded or any(batch.weight is not None for batch in batches):
        text = f"{name} does not support example weights: use fixed ways and shots"
        raise ConfigError(("task", text))


# functions of one task, as `episodic` gets them


def call_keyed(function: Function, role: str, *args: Any) -> Any:
    """function(*args); ConfigError where torch refuses a draw in it, as it does under vmap.

    `role` is what the function is in the method."""
    try:
        return function(*args)
    except RuntimeError as error:
        if UNDER_VMAP not in str(error):
            raise
        raise _refused(function, role, _draws(_line_of(error.__traceback__))) from error


@contextmanager
def keyed_draws(place: str) -> Iterator[None]:
    """Refuse draws from torch's generator on the CPU inside; `place` says what draws.

    It is for what runs without vmap; inside a compiler's trace nothing is watched."""
    before = _generator_state()
    yield
    if before != _generator_state():
        raise ConfigError((place, _draws("")))


def checked_functions(
    adapt: Function, predict: Function, features: Function | None
) -> tuple[Function, Callable[..., list[Tensor]]]:
    """(`adapt`, `predict` of several results), checked, in a scope with the weights."""
    predict_all = predict_with_example_weights(checked_predict(predict), checked_features(features))
    return adapt_with_example_weights(checked_adapt(adapt)), predict_all


def checked_adapt(adapt: Function) -> Function:
    """`adapt`; ConfigError if it returns no list of one tree of tensors for each step index."""

    def adapt_one(meta: Meta, support: Batch, step_indices: tuple[int, ...], key: Key) -> Any:
        results = call_keyed(adapt, "adapt", meta, support, step_indices, key)
        _require_results(adapt, results, step_indices)
        return results

    return adapt_one


def _require_results(function: Function, results: Any, step_indices: tuple[int, ...]) -> None:
    right = "it must return a list of one result for each of the step indices, its third argument"
    right += ", such as adapt(...).points, or [result] if there are no steps"
    if not isinstance(results, list | tuple) or hasattr(results, "_fields"):
        raise _refused(function, "adapt", f"returned {_kind(results)}: {right}")
    if len(results) != len(step_indices):
        text = f"returned {len(results)} results for the step indices {list(step_indices)}"
        raise _refused(function, "adapt", f"{text}: {right}")
    other = next((leaf for leaf in leaves(results) if not isinstance(leaf, Tensor)), None)
    if other is not None:
        text = f"returned results that contain {_kind(other)}: they must contain only tensors"
        raise _refused(function, "adapt", f"{text}, such as torch.tensor(...) of a number")


def checked_predict(predict: Function) -> Function:
    """`predict`; ConfigError if it returns no tensor with a row for each query."""

    def predict_one(meta: Meta, adapted: Any, support: Batch, query_x: Tensor) -> Any:
        outputs = call_keyed(predict, "predict", meta, adapted, support, query_x)
        _require_rows(predict, "predict", outputs, query_x)
        return outputs

    return predict_one


def checked_features(features: Function | None) -> Function | None:
    """`features`; ConfigError if it returns no tensor with a row for each query."""
    if features is None:
        return None
    function = features

    def features_one(meta: Meta, support: Batch, query_x: Tensor) -> Any:
        z = call_keyed(function, "features", meta, support, query_x)
        _require_rows(function, "features", z, query_x)
        return z

    return features_one


def _require_rows(function: Function, role: str, outputs: Any, x: Tensor) -> None:
    axes = "[M, C]" if role == "predict" else "[M, D]"
    right = f"it must return one tensor {axes}, a row for each of the {x.shape[0]} queries"
    if not isinstance(outputs, Tensor):
        raise _refused(function, role, f"returned {_kind(outputs)}: {right}")
    if outputs.shape[:1] != x.shape[:1]:
        raise _refused(function, role, f"returned a tensor {list(outputs.shape)}: {right}")


def checked_init(init: Init | None, default: Init) -> Init:
    """`init`; ConfigError if it returns no tree of tensors, or draws without its key.

    Without one it is `default`, that of a learner."""
    if init is None:
        return default
    function = init

    def start(key: Key) -> Meta:
        with keyed_draws("init of the method"):
            meta = function(key)
        other = next((leaf for leaf in leaves(meta) if not isinstance(leaf, Tensor)), None)
        if other is not None:
            text = f"returned a meta that contains {_kind(other)}: it must contain only tensors"
            raise _refused(function, "init", text)
        return meta

    return start


def _refused(function: Function, role: str, text: str) -> ConfigError:
    """The error about a function, by the name that its author gave it."""
    name = getattr(function, "__qualname__", role).replace(".<locals>", "")
    return ConfigError((name, f"(`{role}` of the method) {text}"))


def _draws(where: str) -> str:
    text = f"draws from torch's own generator{where}, as torch.randn and torch.rand do: use"
    right = "metalearn.rng with a key, rng.normal(rng.fold_in(key, 'noise'), shape, dtype)"
    return f"{text} {right}; `adapt` and `init` get a key, `predict` what `adapt` has drawn"


def _line_of(trace: TracebackType | None) -> str:
    """The innermost line outside torch, " (file:line)"; empty where there is none."""
    frames = [one for one in traceback.extract_tb(trace) if not one.filename.startswith(TORCH)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _kind(value: Any) -> str:
    """What a value is, for a sentence."""
    name = type(value).__name__
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(str, value))}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _generator_state() -> bytes | None:
    """The state of torch's generator on the CPU; None inside a trace."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    return torch.default_generator.get_state().numpy().tobytes()
