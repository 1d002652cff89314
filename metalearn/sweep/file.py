"""A sweep file in W&B's schema, read and checked: every error at once, those of its experiment
included.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import model_validator

from metalearn.component import Component, option
from metalearn.config import shipped
from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, find_file, load
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.storage.yaml import read_yaml
from metalearn.sweep.spread import GRID_MOST, SPREADS, Spread, kind_of

KEYS = (
    "program",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "run_cap",
    "name",
    "description",
)
# Keys of W&B's schema that say where and how W&B runs a sweep; they change nothing here.
FOR_WANDB = ("project", "entity", "command", "controller", "kind", "apiVersion")
METHODS = ("grid", "random", "bayes")
METRICS = ("valid/loss", "valid/accuracy", "test/loss", "test/accuracy")
NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]*$")
PROBED = 200  # values that are tried one by one in the experiment before a sweep begins


class Metric(Component):
    """What a sweep looks for."""

    name: str = option(
        ..., "valid/loss or valid/accuracy (at the best look), test/loss or test/accuracy"
    )
    goal: Literal["minimize", "maximize"] = option("minimize", "which way is better")
    target: float | None = option(None, "no new trial begins once one has reached this")
    impute: Literal["worst"] = option("worst", "what a trial that failed counts as")

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        """`loss` and valid.loss are valid/loss."""
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            name = data["name"].replace(".", "/")
            data = {**data, "name": f"valid/{name}" if name in ("loss", "accuracy") else name}
        return data

    @model_validator(mode="after")
    def _known(self) -> Metric:
        if self.name not in METRICS:
            raise ValueError(
                f"no metric is called {self.name!r}; {did_you_mean(self.name, METRICS)}"
            )
        best = "minimize" if self.of == "loss" else "maximize"
        if self.goal != best:
            size = "small" if self.of == "loss" else "large"
            raise ValueError(f"{self.name} is better when {size}: say goal: {best}")
        return self

    @property
    def split(self) -> str:
        return self.name.partition("/")[0]

    @property
    def of(self) -> str:
        return self.name.partition("/")[2]


class EarlyTerminate(Component):
    """Trials that are behind end early, by hyperband (Li et al. 2018): at each band the best 1/eta
    go on.
    """

    type: Literal["hyperband"] = option(..., "hyperband")
    min_iter: int | None = option(
        None, "looks before the first band; the next is eta times later", ge=1
    )
    max_iter: int | None = option(
        None, "looks of a whole trial; bands lie eta, eta^2, ... times before it", ge=1
    )
    s: int | None = option(None, "how many bands, with max_iter", ge=1, le=100)
    eta: float = option(3.0, "the best 1/eta of the trials pass a band", gt=1)
    strict: bool = option(
        True, "judge by the value at the band; false: by the best so far, which ends fewer"
    )

    @model_validator(mode="after")
    def _one_form(self) -> EarlyTerminate:
        if (self.min_iter is None) == (self.max_iter is None):
            raise ValueError("give either min_iter, or max_iter and s")
        if self.max_iter is not None and self.s is None:
            raise ValueError("max_iter needs s, the number of bands")
        if not self.bands(1):
            raise ValueError("has no band: max_iter is below eta")
        return self

    def bands(self, looks: int) -> list[int]:
        """The looks at which trials are judged, ascending, up to one at or beyond `looks`."""
        if self.max_iter is not None:
            ends = [int(self.max_iter / self.eta**place) for place in range(1, 1 + (self.s or 1))]
            return sorted({end for end in ends if end >= 1})
        found: list[int] = []
        band = float(self.min_iter or 1)
        while not found or found[-1] < looks:
            found.append(int(band))
            band *= self.eta
        return found


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    file: str
    name: str
    program: str  # the experiment file
    method: str
    metric: Metric
    parameters: dict[str, Spread]
    early: EarlyTerminate | None
    cap: int
    data: dict[str, Any]  # as the file has it
    experiment: Experiment  # with the first value of every parameter

    def drawn(self, latents: dict[str, Any]) -> dict[str, Any]:
        """The parameters' values for what a sampler drew."""
        return {name: spread.of(latents.get(name)) for name, spread in self.parameters.items()}

    def trial(self, values: dict[str, Any]) -> Experiment:
        """The experiment of one trial; ConfigError where the values do not go together."""
        experiment = load(
            self.program, [override(name, value) for name, value in values.items()]
        ).experiments[0]
        return experiment.with_seed(experiment.run.seeds[0])


def override(name: str, value: Any) -> str:
    """`name=value` as the command line takes it; the value comes back the same from YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return f"{name}={text.removesuffix(chr(10)).removesuffix('...').strip()}"


def grid_size(parameters: dict[str, Spread]) -> int:
    return math.prod(len(spread.grid()) for spread in parameters.values())


def grid_point(parameters: dict[str, Spread], number: int) -> dict[str, Any]:
    """Latents of the point of that number, the last parameter changing fastest."""
    point: dict[str, Any] = {}
    for name, spread in reversed(parameters.items()):
        choices = spread.grid()
        number, place = divmod(number, len(choices))
        point[name] = choices[place]
    return {name: point[name] for name in parameters}


def find_sweep(name: str) -> Path:
    """The sweep file of a path or of a name (`metalearn list sweeps`)."""
    return shipped.find(name, "sweep", "sweeps")


def read(name: str) -> Sweep:
    """The sweep of a file; raises ConfigError with every problem."""
    path = find_sweep(name)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError((str(path), "should be a mapping with " + ", ".join(KEYS)))
    problems = _strange(data)
    found = _parse(data, path, problems)
    if found is None or problems:
        raise ConfigError(*((f"{path}: {place}", text) for place, text in dict.fromkeys(problems)))
    return found


def _strange(data: Any, place: str = "") -> list[tuple[str, str]]:
    """What YAML has and JSON has not: dates, sets, bytes; a sweep is written down as JSON."""
    if isinstance(data, dict):
        return [
            problem for key, value in data.items() for problem in _strange(value, f"{place}.{key}")
        ]
    if isinstance(data, list):
        return [
            problem for at, value in enumerate(data) for problem in _strange(value, f"{place}.{at}")
        ]
    if data is None or isinstance(data, (str, int, float)):
        return []
    text = (
        f"should be a text, a number, a list or a mapping, not a {type(data).__name__}: put "
        f"it into quotes"
    )
    return [(place.removeprefix("."), text)]


def _parse(data: dict[str, Any], path: Path, problems: list[tuple[str, str]]) -> Sweep | None:
    for key in data:
        if key not in KEYS + FOR_WANDB:
            problems.append(
                (str(key), f"is no key of a sweep that runs here; {did_you_mean(str(key), KEYS)}")
            )
    method = data.get("method")
    if method not in METHODS:
        problems.append(("method", f"should be one of {', '.join(METHODS)}, not {method!r}"))
    name = data.get("name") or path.stem
    if not isinstance(name, str) or any(c in name for c in "/\\\0") or name in (".", ".."):
        problems.append(("name", f"should be a name without slashes, not {name!r}"))
    metric = _section(Metric, data, "metric", problems)
    early = (
        None
        if data.get("early_terminate") is None
        else _section(EarlyTerminate, data, "early_terminate", problems)
    )
    parameters = _parameters(data.get("parameters"), "parameters", "", problems)
    cap = _cap(data, method, parameters, problems)
    program = _program(data.get("program"), path, problems)
    if program is None:
        return None
    tried = _tried(program, parameters, problems)
    if tried is None or metric is None:
        return None
    _fits(*tried, metric, early, problems)
    return Sweep(
        str(path), str(name), program, str(method), metric, parameters, early, cap, data, tried[0]
    )


def _section(
    kind: type[Component], data: dict[str, Any], key: str, problems: list[tuple[str, str]]
) -> Any:
    values = data.get(key)
    if not isinstance(values, dict):
        lacks = (
            "is missing: say what the sweep looks for"
            if values is None
            else f"should be a mapping, not {values!r}"
        )
        problems.append((key, lacks))
        return None
    return validated(kind, values, key, problems)


def _parameters(
    data: Any, place: str, prefix: str, problems: list[tuple[str, str]]
) -> dict[str, Spread]:
    """Dotted keys and their spreads; `parameters` inside a parameter is one level of dots more."""
    if not isinstance(data, dict) or not data:
        problems.append(
            (place, "should map dotted keys of the experiment to values, such as method.inner_lr")
        )
        return {}
    found: dict[str, Spread] = {}
    for key, values in data.items():
        where, name = f"{place}.{key}", f"{prefix}{key}"
        if not isinstance(key, str) or not NAME.match(key) or not all(name.split(".")):
            problems.append(
                (where, "should be a dotted key of the experiment, such as method.inner_lr")
            )
        elif isinstance(values, dict) and "parameters" in values:
            inner = _parameters(values["parameters"], f"{where}.parameters", f"{name}.", problems)
            found.update(
                {
                    key: spread
                    for key, spread in inner.items()
                    if not _twice(key, found, where, problems)
                }
            )
        elif not _twice(name, found, where, problems):
            spread = _spread(values, where, problems)
            if spread is not None:
                found[name] = spread
    return found


def _twice(
    name: str, found: dict[str, Spread], where: str, problems: list[tuple[str, str]]
) -> bool:
    if name in found:
        problems.append((where, f"{name} is given twice"))
    return name in found


def _spread(values: Any, place: str, problems: list[tuple[str, str]]) -> Spread | None:
    if not isinstance(values, dict):
        problems.append(
            (
                place,
                f"should be a mapping such as {{values: [...]}} or {{min: 0, max: 1}}, not "
                f"{values!r}",
            )
        )
        return None
    name = values.get("distribution", kind_of(values))
    if not isinstance(name, str) or name not in SPREADS:
        said = (
            f"no distribution is called {name!r}"
            if "distribution" in values
            else "give value, values or min and max"
        )
        problems.append((place, f"{said}; {did_you_mean(str(name), SPREADS)}"))
        return None
    made = validated(SPREADS[name], {**values, "distribution": name}, place, problems)
    return made if isinstance(made, Spread) else None


def _cap(
    data: dict[str, Any],
    method: Any,
    parameters: dict[str, Spread],
    problems: list[tuple[str, str]],
) -> int:
    """How many trials there are."""
    cap = data.get("run_cap")
    if cap is not None and (type(cap) is not int or not 1 <= cap <= 10**6):
        problems.append(("run_cap", f"should be a whole number from 1 to 1,000,000, not {cap!r}"))
        return 0
    if method == "grid":
        for name, spread in parameters.items():
            if not spread.countable:
                text = "cannot be gone through by a grid: give values, int_uniform or q_uniform"
                problems.append((f"parameters.{name}", text))
        size = grid_size({name: spread for name, spread in parameters.items() if spread.countable})
        if size > GRID_MOST:
            problems.append(("parameters", f"a grid of {size} points: at most {GRID_MOST}"))
        return size if cap is None else min(cap, size)
    if cap is None and method in METHODS:
        problems.append(
            (
                "run_cap",
                f"is missing: {method} has no end of its own; say how many trials there are",
            )
        )
    return cap or 0


def _program(program: Any, path: Path, problems: list[tuple[str, str]]) -> str | None:
    """The experiment file: a path from here or from the sweep file's folder, or a name in
    experiments/.
    """
    if not isinstance(program, str) or not program:
        problems.append(
            ("program", f"should be the experiment file that is swept, not {program!r}")
        )
        return None
    beside = path.parent / program
    try:
        return str(
            beside if beside.is_file() and not Path(program).is_file() else find_file(program)
        )
    except (ConfigError, OSError, ValueError) as error:
        texts = (
            [text for _, text in error.problems] if isinstance(error, ConfigError) else [str(error)]
        )
        problems.extend(("program", f"{program}: {text}") for text in texts)
        return None


def _tried(
    program: str, parameters: dict[str, Spread], problems: list[tuple[str, str]]
) -> tuple[Experiment, Parts] | None:
    """The experiment with first values; what is wrong with it, and with every other value, is
    added.
    """
    first = {name: spread.probes()[0] for name, spread in parameters.items()}
    try:
        plan = load(program, [override(name, value) for name, value in first.items()])
        if plan.comparison:
            raise ConfigError(
                ("", "holds `methods`, a comparison: a sweep runs an experiment with one `method`")
            )
        parts = build(plan.experiments[0], to_train=True)
    except ConfigError as error:
        problems.extend(_placed(program, place, text, parameters) for place, text in error.problems)
        return None
    others = [(name, value) for name, spread in parameters.items() for value in spread.probes()[1:]]
    for name, value in others[:PROBED]:
        try:
            load(
                program,
                [override(key, value if key == name else start) for key, start in first.items()],
            )
        except ConfigError as error:
            place = f"parameters.{name}"
            problems.extend(
                (place, f"{value!r} is no legal value: {text}") for _, text in error.problems
            )
    return plan.experiments[0], parts


def _placed(program: str, place: str, text: str, parameters: dict[str, Spread]) -> tuple[str, str]:
    """A problem of the experiment lies with the parameter that set the key, or with the program."""
    key = place.removeprefix(f"{program}: ")
    name = next(
        (name for name in parameters if key == name or key.startswith((f"{name}=", f"{name}."))),
        None,
    )
    return (f"parameters.{name}" if name else f"program {place}", text)


def _fits(
    experiment: Experiment,
    parts: Parts,
    metric: Metric,
    early: Any,
    problems: list[tuple[str, str]],
) -> None:
    """Whether trials of this experiment will have the metric, and looks for early termination."""
    if metric.of == "accuracy" and not parts.test.spec.classification:
        problems.append(("metric.name", f"regression has no accuracy: say {metric.split}/loss"))
    looks = experiment.run.validate.every is not None
    if not looks and metric.split == "valid":
        problems.append(
            (
                "metric.name",
                f"{metric.name} needs looks at validation tasks: run.validate.every is null",
            )
        )
    if early is not None and (metric.split != "valid" or not looks):
        problems.append(
            (
                "early_terminate",
                "judges by looks at validation tasks: metric valid/loss or valid/accuracy",
            )
        )
