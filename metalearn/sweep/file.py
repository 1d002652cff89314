"""A sweep file in W&B's schema, checked together with its experiment, all errors at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.component import Component
from metalearn.config import shipped
from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, find_file, load
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.storage.yaml import read_yaml
from metalearn.sweep.hyperband import EarlyTerminate
from metalearn.sweep.metric import Metric, default_metric
from metalearn.sweep.parameters import (
    Parameters,
    Problems,
    number_of_trials,
    override,
    parse_parameters,
)

KEYS = (
    *("program", "method", "metric", "parameters", "early_terminate", "run_cap", "name"),
    "description",
)
# Keys of W&B's schema that say where and how W&B runs a sweep; they change nothing here.
FOR_WANDB = ("project", "entity", "command", "controller", "kind", "apiVersion")
METHODS = ("grid", "random", "bayes")
PROBED = 200  # values that are checked one by one in the experiment before a sweep begins


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    file: str
    name: str
    program: str  # the experiment file
    method: str
    metric: Metric
    parameters: Parameters
    early: EarlyTerminate | None
    cap: int
    data: dict[str, Any]  # as in the file
    experiment: Experiment  # with the first value of every parameter

    def convert_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters' values for the samples of a sampler."""
        return {
            name: distribution.value_of(samples.get(name))
            for name, distribution in self.parameters.items()
        }

    def trial(self, values: dict[str, Any]) -> Experiment:
        """Return the experiment of one trial; raises ConfigError if the values are incompatible."""
        overrides = [override(key, setting) for key, setting in values.items()]
        experiment = load(self.program, overrides).experiments[0]
        return experiment.with_seed(experiment.run.seeds[0])


def find_sweep(name: str) -> Path:
    """Return the sweep file of a path or of a name (`metalearn list sweeps`)."""
    return shipped.find(name, "sweep", "sweeps")


def read(name: str) -> Sweep:
    """Read and check a sweep file; raises ConfigError with every problem."""
    path = find_sweep(name)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError((str(path), "must be a mapping with " + ", ".join(KEYS)))
    problems = _not_json(data)
    config = _parse(data, path, problems)
    if config is None or problems:
        raise ConfigError(*((f"{path}: {place}", text) for place, text in dict.fromkeys(problems)))
    return config


def _not_json(data: Any, place: str = "") -> Problems:
    """Return problems of dates, sets and bytes: a sweep is stored as JSON, which has none."""
    if isinstance(data, (dict, list)):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return [problem for key, value in items for problem in _not_json(value, f"{place}.{key}")]
    if data is None or isinstance(data, (str, int, float)):
        return []
    text = f"must be a string, a number, a list or a mapping (got a {type(data).__name__})"
    return [(place.removeprefix("."), f"{text}: quote it")]


def _parse(data: dict[str, Any], path: Path, problems: Problems) -> Sweep | None:
    for key in sorted(map(str, {*data} - {*KEYS, *FOR_WANDB})):
        problems.append((key, f"unknown key of a sweep; {did_you_mean(key, KEYS)}"))
    method = data.get("method")
    if method not in METHODS:
        problems.append(("method", f"must be one of {', '.join(METHODS)}, not {method!r}"))
    name = data.get("name") or path.stem
    if not isinstance(name, str) or any(c in name for c in "/\\\0") or name in (".", ".."):
        problems.append(("name", f"must be a name without slashes, not {name!r}"))
    early = _section(EarlyTerminate, data, "early_terminate", problems)
    metric = _section(Metric, data, "metric", problems)
    if data.get("metric") is None and (method == "bayes" or data.get("early_terminate")):
        problems.append(("metric", "is missing: bayes and early_terminate need it"))
    parameters = parse_parameters(data.get("parameters"), "parameters", "", problems)
    cap = number_of_trials(data.get("run_cap"), method, parameters, problems)
    program = _program(data.get("program"), path, problems)
    built = None if program is None else _build_with_first_values(program, parameters, problems)
    if program is None or built is None:
        return None
    experiment, parts = built
    metric = metric or default_metric(experiment.run.validate.every is not None)
    _check_metric(experiment, parts, metric, early, problems)
    return Sweep(
        str(path), str(name), program, str(method), metric, parameters, early, cap, data, experiment
    )


def _section(kind: type[Component], data: dict[str, Any], key: str, problems: Problems) -> Any:
    """Return the section as a component; None if it is missing, or with problems added."""
    values = data.get(key)
    if values is None:
        return None
    if not isinstance(values, dict):
        problems.append((key, f"must be a mapping, not {values!r}"))
        return None
    return validated(kind, values, key, problems)


def _program(program: Any, path: Path, problems: Problems) -> str | None:
    """Return the experiment file: a path from here or from the sweep file's folder, or a name."""
    if not isinstance(program, str) or not program:
        text = f"must be the experiment file that is swept, not {program!r}"
        problems.append(("program", text))
        return None
    sibling = path.parent / program
    try:
        exists = Path(program).is_file()
        return str(sibling if sibling.is_file() and not exists else find_file(program))
    except ConfigError as error:
        problems.extend(("program", f"{program}: {text}") for _, text in error.problems)
    except (OSError, ValueError) as error:
        problems.append(("program", f"{program}: {error}"))
    return None


def _build_with_first_values(
    program: str, parameters: Parameters, problems: Problems
) -> tuple[Experiment, Parts] | None:
    """Build the experiment with every parameter's first value; add the problems of any value."""
    first = {name: distribution.probes()[0] for name, distribution in parameters.items()}
    try:
        plan = load(program, [override(name, value) for name, value in first.items()])
        if plan.comparison:
            text = "lists several `methods`: a sweep needs an experiment with a single `method`"
            raise ConfigError(("", text))
        parts = build(plan.experiments[0], to_train=True)
    except ConfigError as error:
        problems.extend(
            _attribute_problem(program, place, text, parameters) for place, text in error.problems
        )
        return None
    remaining = [
        (name, value)
        for name, distribution in parameters.items()
        for value in distribution.probes()[1:]
    ]
    for name, value in remaining[:PROBED]:
        try:
            values = {**first, name: value}
            load(program, [override(key, setting) for key, setting in values.items()])
        except ConfigError as error:
            illegal = f"invalid value {value!r}"
            place = f"parameters.{name}"
            problems.extend((place, f"{illegal}: {text}") for _, text in error.problems)
    return plan.experiments[0], parts


def _attribute_problem(
    program: str, place: str, text: str, parameters: Parameters
) -> tuple[str, str]:
    """Return a problem of the experiment under the parameter that sets the key, or the program."""
    key = place.removeprefix(f"{program}: ")
    parents = (
        name for name in parameters if key == name or key.startswith((f"{name}=", f"{name}."))
    )
    name = next(parents, None)
    return (f"parameters.{name}" if name else f"program {place}", text)


def _check_metric(
    experiment: Experiment, parts: Parts, metric: Metric, early: Any, problems: Problems
) -> None:
    """Check that trials have the metric, and validations for early termination."""
    validates = experiment.run.validate.every is not None
    if metric.quantity == "accuracy" and not parts.test.spec.classification:
        problems.append(("metric.name", f"regression has no accuracy: use {metric.split}/loss"))
    if not validates and metric.split == "valid":
        text = f"{metric.name} needs validations, but run.validate.every is null"
        problems.append(("metric.name", text))
    if early is not None and (metric.split != "valid" or not validates):
        text = "compares validations: use the metric valid/loss or valid/accuracy"
        problems.append(("early_terminate", text))
