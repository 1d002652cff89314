"""What a task source samples, compared with its spec: the first tasks and a few examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.in_memory import hash_of
from metalearn.labels import check_example_targets, check_targets
from metalearn.losses import LOSSES
from metalearn.padding import zero_padding
from metalearn.tree import leaves, take
from metalearn.types import Batch, Episode, EpisodeSpec, TaskSource

KEY = rng.fold_in(0, "given")
FIRST = 2  # tasks whose hash a run stores
MANY = 50  # tasks sampled at once, as many as in a test by default (evaluate.chunk)
KEYS = 8
EXAMPLES = 4
ALONE = "task t must depend on (key, start + t) alone, as with keys = fold_in(key, torch.arange("
ALONE += "start, start + num_tasks))"


class Refused(Exception):
    """Problems after which nothing else can be checked, as sentences."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__(*problems)


def sampling_problems(source: TaskSource, *, trains: bool) -> tuple[list[str], Exception | None]:
    """Return a sentence for each difference between what a source samples and its spec.

    The source passes `form_problems`. `trains`: training samples from it. Also returns the first
    exception that the source raised, or None."""
    problems, causes, y_shape = list[str](), list[Any](), None
    try:
        first = _sample(source, FIRST)
        problems += _episode_problems(first, source.spec, FIRST)
        if not problems:
            y_shape = tuple(first.query.y.shape[2:])
            problems += _task_problems(source, first, trains)
    except Refused as refused:
        problems += refused.problems
        causes.append(refused.__cause__)
    try:
        problems += _example_problems(source, y_shape)
    except Refused as refused:
        problems += refused.problems
        causes.append(refused.__cause__)
    return problems, causes[0] if causes else None


def first_tasks(source: TaskSource) -> Episode:
    """Return the tasks whose hash a run stores."""
    return source.sample(KEY, FIRST)


def loss_problems(episodes: Episode, spec: EpisodeSpec) -> list[str]:
    """Return why the losses of this package are not defined for the targets; else empty.

    A function passed as the loss may compare other shapes, and leave out missing targets."""
    is_own = spec.loss is not None and spec.loss not in LOSSES
    if is_own or spec.objective is not None:
        return []
    problems = []
    for name, batch in (("support", episodes.support), ("query", episodes.query)):
        y = zero_padding(batch).y
        if not spec.classification and y.dim() == 3 and y.shape[2] != spec.outputs:
            text = f"spec.outputs is {spec.outputs}, so that predictions are [T, B, {spec.outputs}]"
            problems.append(f"{name}.y has shape {list(y.shape)}, but {text}")
        elif not y.isfinite().all():
            problems.append(f"{name}.y is not finite, and neither is its loss")
    return problems


# tasks


def _task_problems(source: TaskSource, first: Episode, trains: bool) -> list[str]:
    spec = source.spec
    if hash_of(leaves(first)) != hash_of(leaves(_sample(source, FIRST))):
        text = "sample gives other tasks when it is called again with the same key"
        return [f"{text}: draw random numbers from the key (metalearn.rng), not from a generator"]
    many = _sample(source, MANY)
    if problems := _episode_problems(many, spec, MANY):
        return problems
    if spec.classification and spec.outputs > spec.ways > 1:
        highest = int(max(part.y.max() for part in (many.support, many.query) if part.y.numel()))
        if highest < spec.ways:
            text = f"it must be {spec.ways}, as all labels are 0 .. {spec.ways - 1}"
            return [f"spec.outputs is {spec.outputs} for tasks of {spec.ways} ways: {text}"]
    return [*_number_problems(source, first, many), *_key_problems(source, first, many, trains)]


def _sample(source: TaskSource, tasks: int, start: int = 0, key: Tensor = KEY) -> Any:
    text = f"sample(key, {tasks}, {start})"
    return _returned(text, source.sample, key, tasks, start)


def _returned(text: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args); any exception is raised again as Refused, with a sentence."""
    try:
        return function(*args)
    except ConfigError as error:
        sentences = (f"{place}: {why}" if place else why for place, why in error.problems)
        raise Refused(*(f"{text} raises ConfigError: {why}" for why in sentences)) from error
    except Exception as error:
        raise Refused(f"{text} raises {type(error).__name__}: {error}") from error


def _episode_problems(episodes: Any, spec: EpisodeSpec, tasks: int) -> list[str]:
    """Return where `tasks` sampled tasks differ from the spec."""
    if not isinstance(episodes, Episode):
        text = "it must return Episode(support, query, info), of metalearn.types"
        return [f"sample returns a {type(episodes).__name__}: {text}"]
    if why := _number_of_tasks_problem(episodes, spec, tasks):
        return [why]
    problems: list[str] = []
    for name, count in (("support", spec.shots), ("query", spec.queries)):
        # a test function has its residuals as examples, whatever the shots
        expected = None if spec.objective is not None else spec.ways * count
        batch = getattr(episodes, name)
        problems += _batch_problems(name, batch, spec, (tasks, expected))
    problems += _info_problems(episodes.info, tasks)
    return problems or _target_problems(check_targets, episodes, spec)


def _number_of_tasks_problem(episodes: Episode, spec: EpisodeSpec, tasks: int) -> str:
    """Return the problem of another number of tasks than was asked for; else empty."""
    inputs = [getattr(part, "x", None) for part in (episodes.support, episodes.query)]
    axes = 2 + len(spec.x_shape)
    counts = {len(x) for x in inputs if isinstance(x, Tensor) and x.dim() == axes}
    if len(counts) != 1 or counts == {tasks}:
        return ""
    (count,) = counts
    hint = ", drawn with replacement if there are fewer" if count < tasks else ""
    return f"sample(key, {tasks}) returns {count} tasks: it must return {tasks}{hint}"


def _target_problems(check: Callable[..., None], value: Any, spec: EpisodeSpec) -> list[str]:
    try:
        check(value, spec)
    except ConfigError as error:
        return [f"{place} {text}" for place, text in error.problems]
    return []


def _info_problems(info: Any, tasks: int) -> list[str]:
    if not isinstance(info, dict):
        return [f"info is a {type(info).__name__}: it must be a dict with the tensor key [T]"]
    problems = []
    if "key" not in info:
        problems.append("info has no key [T], one per task")
    for name, value in info.items():
        if not isinstance(value, Tensor):
            text = f"it must be a tensor with a leading axis of tasks, [T, ...], T = {tasks}"
            problems.append(f"info[{name!r}] is a {type(value).__name__}: {text}")
        elif value.shape[:1] != (tasks,):
            text = f"it must be [T, ...] for T = {tasks} tasks"
            problems.append(f"info[{name!r}] has shape {list(value.shape)}: {text}")
        elif name == "key" and (value.dtype != torch.int64 or value.dim() != 1):
            text = "it must be int64 [T], as fold_in returns"
            problems.append(f"info['key'] is {value.dtype} {list(value.shape)}: {text}")
    return problems


def _number_problems(source: TaskSource, first: Episode, many: Episode) -> list[str]:
    """Return whether a task depends on how many are sampled, or not on its own number."""
    if not _close(first, take(many, slice(0, FIRST))):
        text = f"the first {FIRST} tasks of sample(key, {MANY}) are not those of sample(key, "
        return [f"{text}{FIRST}): {ALONE}"]
    second = _sample(source, 1, 1)
    if problems := _episode_problems(second, source.spec, 1):
        return problems
    if not _close(second, take(first, slice(1, 2))):
        return [f"sample(key, 1, start=1) is not the second task of sample(key, {FIRST}): {ALONE}"]
    if len(many.info["key"].unique()) == 1:
        return [f"info['key'] is the same for all tasks of a batch: {ALONE}"]
    return []


def _key_problems(source: TaskSource, first: Episode, many: Episode, trains: bool) -> Iterator[str]:
    """Yield why the key has too little effect: a source with few tasks may repeat some of them.

    A task with an objective may have all that varies in its initial parameters."""
    if source.spec.objective is not None:
        return
    others = (_sample(source, FIRST, key=rng.fold_in(KEY, n)) for n in range(1, KEYS))
    key_matters = any(not _close(first, other, of_batches=True) for other in others)
    one_task = take(many, torch.zeros(MANY, dtype=torch.int64))
    is_one_task = _close(many, one_task, of_batches=True)
    if key_matters and is_one_task:
        yield f"all tasks of sample(key, {MANY}) are the same: {ALONE}"
    elif not key_matters and trains:
        text = f"sample gives the same tasks for {KEYS} different keys, so that every meta-step"
        yield f"{text} would learn from the same tasks: {ALONE}"


def _close(a: Episode, b: Episode, of_batches: bool = False) -> bool:
    """Return whether tasks are the same up to rounding; `of_batches`: without their info."""
    if of_batches:
        a, b = a._replace(info={}), b._replace(info={})
    left, right = leaves(a), leaves(b)
    return len(left) == len(right) and all(map(_equal, left, right))


def _equal(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() or not left.numel():
        return torch.equal(left, right)
    scale = float(left.nan_to_num(posinf=0, neginf=0).abs().max())
    return torch.allclose(left, right, rtol=1e-3, atol=1e-5 * scale, equal_nan=True)


# batches


def _batch_problems(
    name: str, batch: Any, spec: EpisodeSpec, size: tuple[int, int | None]
) -> list[str]:
    """Return where a batch of `size` (T, B) differs from the spec; B may be unknown."""
    if not isinstance(batch, Batch):
        text = "it must be a Batch(x, y), of metalearn.types"
        return [f"{name} is a {type(batch).__name__}: {text}"]
    x, y = batch.x, batch.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        return [f"{name} has x and y as {kinds}: use tensors, such as torch.as_tensor"]
    problems = _shape_problems(name, x, y, spec, size) or _y_problems(name, batch, spec)
    if x.is_floating_point() and x.dtype != spec.dtype:
        problems.append(f"{name}.x is {x.dtype}, and spec.dtype is {spec.dtype}")
    devices = {x.device.type, y.device.type}
    if devices != {torch.device(spec.device).type}:
        text = f"{name} is on {' and '.join(sorted(devices))}, and spec.device is {spec.device!r}"
        problems.append(text)
    if x.requires_grad or y.requires_grad:
        problems.append(f"{name} requires a gradient: use x.detach()")
    return problems


def _shape_problems(
    name: str, x: Tensor, y: Tensor, spec: EpisodeSpec, size: tuple[int, int | None]
) -> list[str]:
    tasks, count = size
    if not spec.x_shape and x.is_floating_point():
        return [f"{name}.x has no axis of inputs: use x[..., None], and x_shape=(1,) in the spec"]
    if x.dim() != 2 + len(spec.x_shape) or tuple(x.shape[2:]) != spec.x_shape:
        text = f"{name}.x has shape {list(x.shape)} for T = {tasks} tasks"
        return [f"{text}: the spec says [{', '.join(['T', 'B', *map(str, spec.x_shape)])}]"]
    if count is not None and x.shape[1] != count:
        field = "shots" if name == "support" else "queries"
        product = f"ways * {field} = {spec.ways} * {getattr(spec, field)} = {count}"
        return [f"{name}.x has {x.shape[1]} examples a task: the spec says {product}"]
    if x.shape[:2] != y.shape[:2]:
        return [f"{name}.y has shape {list(y.shape)}, and x has {list(x.shape)}"]
    return []


def _y_problems(name: str, batch: Batch, spec: EpisodeSpec) -> list[str]:
    """Return where targets and weights [T, B, ...] differ from the spec, and x that is not finite.

    How many numbers a target has depends on the loss: see `loss_problems`."""
    problems, (x, y, weight) = list[str](), batch
    if spec.classification:
        problems += _label_problems(name, y, spec)
    elif y.dim() == 2 and spec.objective is None:
        hint = ": add a last axis, y[..., None]" if spec.outputs == 1 else ""
        text = f"the spec says [T, B, {spec.outputs}], outputs on the last axis"
        problems.append(f"{name}.y has shape {list(y.shape)}: {text}{hint}")
    elif y.is_floating_point() and y.dtype != spec.dtype:
        problems.append(f"{name}.y is {y.dtype}, and spec.dtype is {spec.dtype}")
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != x.shape[:2]):
        shape = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        problems.append(f"{name}.weight has shape {shape}, and x has {list(x.shape)}")
    elif not zero_padding(Batch(x, x, weight)).x.isfinite().all():  # padding may hold anything
        problems.append(f"{name}.x is not finite")
    return problems


def _label_problems(name: str, y: Tensor, spec: EpisodeSpec) -> list[str]:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        return [f"{name}.y is {y.dtype}: labels are integers (int64) 0 .. {spec.outputs - 1}"]
    if y.dim() != 2 and spec.ways > 1:  # dense tasks have several labels an example
        text = "labels are one integer for each example, [T, B], not one-hot"
        return [f"{name}.y has shape {list(y.shape)}: {text}"]
    return []


# examples


def _example_problems(source: TaskSource, y_shape: tuple[int, ...] | None) -> list[str]:
    """Return where examples differ from the spec; `y_shape` is that of one target of a task."""
    text, spec, key = f"examples(key, {EXAMPLES})", source.spec, rng.fold_in(KEY, "examples")
    batch = _returned(text, source.examples, key, EXAMPLES)
    if not isinstance(batch, Batch):
        kind = type(batch).__name__
        return [f"examples returns a {kind}: it must return a Batch(x, y), of metalearn.types"]
    x, y = batch.x, batch.y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        return [f"examples has x and y as {kinds}: use tensors, such as torch.as_tensor"]
    if problems := _example_shape_problems(text, x, y, spec, y_shape):
        return problems
    again = _returned(text, source.examples, key, EXAMPLES)
    if hash_of(leaves(batch)) != hash_of(leaves(again)):
        why = "draw random numbers from the key (metalearn.rng), not from a generator"
        return [f"examples gives other examples when called again with the same key: {why}"]
    return _target_problems(check_example_targets, batch, spec)


def _example_shape_problems(
    text: str, x: Tensor, y: Tensor, spec: EpisodeSpec, y_shape: tuple[int, ...] | None
) -> list[str]:
    problems, x_shape = [], [EXAMPLES, *spec.x_shape]
    if x.dim() == len(x_shape) and len(x) == len(y) != EXAMPLES:
        hint = ", drawn with replacement if there are fewer" if len(x) < EXAMPLES else ""
        return [f"{text} returns {len(x)} examples: it must return {EXAMPLES}{hint}"]
    if list(x.shape) != x_shape:
        problems.append(f"{text}.x has shape {list(x.shape)}: it must be {x_shape}")
    if x.is_floating_point() and x.dtype != spec.dtype:
        problems.append(f"{text}.x is {x.dtype}, and spec.dtype is {spec.dtype}")
    if spec.classification and y.is_floating_point():
        problems.append(f"{text}.y is {y.dtype}: labels are integers (int64)")
    elif y.is_floating_point() and y.dtype != spec.dtype:
        problems.append(f"{text}.y is {y.dtype}, and spec.dtype is {spec.dtype}")
    expected = list(y.shape if y_shape is None else (EXAMPLES, *y_shape))
    if list(y.shape) != expected or len(y) != EXAMPLES:
        problems.append(f"{text}.y has shape {list(y.shape)}: it must be {expected}")
    return problems
