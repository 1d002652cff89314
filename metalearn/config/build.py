"""From an experiment to task sources, learners and methods, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from metalearn.config.experiment import Experiment, once
from metalearn.config.file import PYTHON
from metalearn.config.inputs import input_problems
from metalearn.config.misfits import choices_by_seen_classes, contradictions, misfits
from metalearn.config.sources import FUNCTION, LazySource, make_record
from metalearn.errors import ConfigError
from metalearn.in_memory import Held, hashes_of, held, hold, name_of
from metalearn.interop import with_engine
from metalearn.losses import LOSSES, criterion
from metalearn.machine import device_of, prepare_device
from metalearn.rng import fold_in
from metalearn.tasks.given.form import build_checked
from metalearn.tasks.images import SPLITS
from metalearn.types import EpisodeSpec, Learner, Method, TaskSource

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class Parts:
    """Everything that a run needs, built once."""

    device: str
    train: TaskSource
    # the training classes in the shape of the test tasks, for learning curves on them
    train_in_test_form: TaskSource
    valid: TaskSource
    test: TaskSource
    learner: Learner
    method: Method  # built for the training tasks
    test_method: Method  # built for the test tasks; takes the same meta


def build(experiment: Experiment, *, to_train: bool = False) -> Parts:
    """Build all parts; raises ConfigError with every problem of tasks, model and method."""
    device, problems = device_of(experiment.run.device), Problems()
    prepare_device(device, experiment.run.deterministic)
    if to_train:  # a finished run is opened wherever it is looked at
        problems.extend(misfits(experiment.run, device))
        problems.extend(choices_by_seen_classes(experiment))
        problems.extend(contradictions(experiment))
        problems.extend(_loss_problems(experiment))

    def source(component: Any, split: str, place: str) -> Any:
        try:
            built = build_checked(component, split, device, DTYPES[experiment.run.dtype])
            return built if experiment.loss is None else _with_loss(built, experiment.loss)
        except ConfigError as error:
            loss_problems = [(where, text) for where, text in error.problems if where == "loss"]
            problems.extend(loss_problems or error.under(place).problems)
            return None

    train = source(experiment.task, "train", "task")
    test_task = _without_augmentation(experiment.test_task)
    sources = {
        split: source(test_task, split, "evaluate.task")
        for split in dict.fromkeys(("train", "valid", experiment.evaluate.split))
    }
    if train is None or any(made is None for made in sources.values()):
        raise ConfigError(*once(problems))
    test = sources[experiment.evaluate.split]
    learner, *methods = _methods(experiment, train.spec, test.spec, problems)
    if to_train:
        _check_inputs({"task": train, "evaluate.task": test}, learner, methods)
    return Parts(device, train, sources["train"], sources["valid"], test, learner, *methods)


def _without_augmentation(task: Any) -> Any:
    """Tasks in the form of the test, whose images are as they are in the training split too."""
    return task.model_copy(update={"augment": ()}) if getattr(task, "augment", ()) else task


def _check_inputs(
    sources: Mapping[str, TaskSource], learner: Learner, methods: Sequence[Method]
) -> None:
    """Raise ConfigError if the model cannot read integers, or floats, of the training or test
    tasks."""
    problems = Problems()
    for (place, source), method in zip(sources.items(), methods, strict=True):
        known = {text for _, text in problems}
        found = input_problems(source, learner, method)
        problems += [(f"{place}.{name}", text) for name, text in found if text not in known]
    if problems:
        raise ConfigError(*problems)


def build_to_test(
    experiment: Experiment, recorded: Mapping[str, Any], *, same_test: bool = False
) -> Parts:
    """Return the parts of a stored run, of which only the test tasks are built.

    `recorded` is the result of `make_records` at the beginning of the run. With `same_test` the
    test tasks are those of the run, and are also built at first use. Without records all parts are
    built as for training."""
    losses = {record.get("loss") for record in recorded.values()}
    if "train" not in recorded or (FUNCTION in losses and experiment.loss is None):
        return build(experiment)
    device = device_of(experiment.run.device)
    dtype, split = DTYPES[experiment.run.dtype], experiment.evaluate.split
    loss = experiment.loss

    def source(component: Any, split: str, place: str, record: Any = None) -> LazySource:
        def build_source() -> TaskSource:
            try:
                built = build_checked(component, split, device, dtype)
            except ConfigError as error:
                raise error.under(place) from error
            return built if loss is None else _with_loss(built, loss)

        lazy = LazySource(build_source, record, device, dtype)
        if record is not None and loss is not None:
            lazy.spec = replace(lazy.spec, loss=_given_loss(loss))
        return lazy

    test_task = _without_augmentation(experiment.test_task)
    sources = {name: source(test_task, name, "evaluate.task") for name in SPLITS}
    test_record = recorded.get("test") if same_test else None
    test: TaskSource = source(test_task, split, "evaluate.task", test_record)
    if test_record is None:
        assert isinstance(test, LazySource)
        test = test.built()
    train = source(experiment.task, "train", "task", recorded["train"])
    methods = _methods(experiment, train.spec, test.spec, Problems())
    return Parts(device, train, sources["train"], sources["valid"], test, *methods)


def make_records(parts: Parts) -> dict[str, Any]:
    """Return the form of the training and test tasks, for `build_to_test`; empty for objectives."""
    records = {"train": make_record(parts.train), "test": make_record(parts.test)}
    return {} if None in records.values() else records


def _with_loss(source: TaskSource, loss: Any) -> TaskSource:
    """Return the same tasks with another loss; raises ConfigError if it does not fit them."""
    other, spec = copy.copy(source), replace(source.spec, loss=_given_loss(loss))
    try:
        other.spec = spec
    except AttributeError as error:  # of a property, or of a frozen dataclass
        text = f"cannot be set, because the spec of {type(source).__name__} is read-only: make it"
        text = f"{text} an attribute, or pass the loss to its EpisodeSpec"
        raise ConfigError(("loss", text)) from error
    criterion(other.spec)
    return other


def _loss_problems(experiment: Experiment) -> Problems:
    """Return why a loss of this package is not defined for the tasks' targets; else empty."""
    if experiment.loss is not None and experiment.loss not in LOSSES:
        return []
    sections = {"task": experiment.task, "evaluate.task": experiment.test_task}
    found = [(name, *problem) for name, task in sections.items() for problem in task.loss_problems]
    return once([(f"{name}.{place}", text) for name, place, text in found])


def hold_loss(loss: Callable[..., Any]) -> tuple[str, Held]:
    """Return (the name in a config of a loss passed as a function, what keeps it alive)."""
    sha256, earlier = hashes_of(loss)
    function = hold(loss, sha256, earlier=earlier)
    return f"{PYTHON}{name_of(loss)}:{function.sha256}", function


def _given_loss(name: str) -> Any:
    """Return a loss by name, or the function of `python:NAME:SHA-256` passed in this process."""
    if not name.startswith(PYTHON):
        return name
    function, _, sha256 = name.removeprefix(PYTHON).rpartition(":")
    function_ref = held(sha256)
    if function_ref is None:
        text = (
            f"is the function {function} (SHA-256 {sha256[:12]}), passed from Python: pass it again"
        )
        raise ConfigError(("loss", text))
    return function_ref.value


def rebuild(parts: Parts, experiment: Experiment) -> Parts:
    """Build learner and methods of an experiment on the same tasks; the sources are reused."""
    specs = parts.train.spec, parts.test.spec
    learner, method, test_method = _methods(experiment, *specs, Problems())
    return replace(parts, learner=learner, method=method, test_method=test_method)


def _methods(
    experiment: Experiment, train: EpisodeSpec, test: EpisodeSpec, problems: Problems
) -> tuple[Learner, Method, Method]:
    """Return (learner and method for training tasks, method for test tasks).

    Raises ConfigError with `problems` and those found here."""
    learner, method = _method(experiment, train, experiment.run.meta_steps, problems)
    if method is not None and method.traits.fixed_ways and train.outputs != test.outputs:
        text = (
            f"is {test.ways}, but {experiment.base_method.name} learns its head for the "
            f"{train.ways} ways of training: use the same ways, or a method without a fixed "
            "head such as proto_net or fine_tune"
        )
        raise ConfigError(*problems, ("evaluate.task.ways", text))
    problems.extend(_test_problems(experiment, test))
    test_learner, test_method = (
        (None, None) if method is None else _method(experiment, test, None, problems)
    )
    is_trained = learner and test_learner and method and method.step
    if is_trained and learner and test_learner and _shapes(learner) != _shapes(test_learner):
        text = f"has inputs of shape {test.x_shape}, which a model trained on {train.x_shape}"
        problems.append(("evaluate.task", f"{text} does not take"))
    if method is None or test_method is None or learner is None or problems:
        raise ConfigError(*once(problems))
    return learner, method, test_method


def _test_problems(experiment: Experiment, test: EpisodeSpec) -> Problems:
    problems, target = Problems(), experiment.evaluate.target
    if target is not None and target.metric == "accuracy" and not test.classification:
        text = "must be loss (got accuracy): regression tasks have no accuracy"
        problems.append(("evaluate.target.metric", text))
    if test.queries == 0:
        problems.append(("evaluate.task.queries", "must be >= 1 (got 0)"))
    return problems


def _shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters that depend on its inputs, not on its outputs."""
    first = {name: tuple(value.shape) for name, value in learner.init(fold_in(0, "shapes")).items()}
    return {name: shape[1:] if name.startswith("head.") else shape for name, shape in first.items()}


def _method(
    experiment: Experiment, spec: EpisodeSpec, meta_steps: int | None, problems: Problems
) -> tuple[Learner | None, Method | None]:
    try:
        learner = experiment.model.build(spec)
    except ConfigError as error:
        problems.extend(error.problems)
        return None, None
    try:
        if experiment.contains is not None and experiment.found is None:
            return learner, _searching(experiment, learner, spec, meta_steps)
        if experiment.found is not None:
            learner = found_learner(experiment, learner, spec)
        method = experiment.base_method.build(learner, spec, meta_steps=meta_steps)
        return learner, with_engine(experiment.run.engine, experiment.base_method, learner, method)
    except ConfigError as error:
        problems.extend((_placed(place, experiment), text) for place, text in error.problems)
        return learner, None


def _searching(
    experiment: Experiment, learner: Learner, spec: EpisodeSpec, meta_steps: int | None
) -> Method:
    """Build a method whose shared search has not been run."""
    if experiment.run.engine != "native":
        text = f"{experiment.run.engine} has no counterpart of {experiment.method.name}"
        raise ConfigError(("run.engine", f"{text}: use run.engine=native"))
    options = {"meta_steps": meta_steps, "contained": experiment.contains}
    return experiment.method.build(learner, spec, **options)  # type: ignore[no-any-return]


def _placed(place: str, experiment: Experiment) -> str:
    """Return the place in the file of a problem with building a method."""
    if place.startswith(("task", "model", "run", "evaluate")):
        return place
    inside = place.removeprefix("method.")
    contained = experiment.contains is not None and not inside.startswith(("contains", "found"))
    return f"method.contains.{inside}" if contained else f"method.{inside}"


def found_learner(experiment: Experiment, learner: Learner, spec: EpisodeSpec) -> Learner:
    """Return the network that a shared search found, normalised as the model section specifies."""
    try:
        searched: Learner = experiment.method.found_learner(experiment.found, learner, spec)
        return searched
    except ConfigError as error:
        raise ConfigError(*(("found", text) for _, text in error.problems)) from error


def learner_and_method(experiment: Experiment, spec: EpisodeSpec) -> tuple[Learner, Method]:
    """Build the experiment's learner and method for tasks of `spec`."""
    problems = Problems()
    learner, method = _method(experiment, spec, None, problems)
    if learner is None or method is None:
        raise ConfigError(*problems)
    return learner, method
