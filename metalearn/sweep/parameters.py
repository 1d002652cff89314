"""The parameters of a sweep file: dotted keys of the experiment and their distributions."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from metalearn.config.validate import validated
from metalearn.errors import did_you_mean
from metalearn.sweep.distributions import (
    DISTRIBUTIONS,
    GRID_MOST,
    Distribution,
    default_distribution,
)

Parameters = dict[str, Distribution]
Problems = list[tuple[str, str]]
NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]*$")


def override(name: str, value: Any) -> str:
    """Return `name=value` as the command line takes it; YAML reads the same value back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return f"{name}={text.removesuffix(chr(10)).removesuffix('...').strip()}"


def grid_size(parameters: Parameters) -> int:
    """Return the number of points of the grid."""
    return math.prod(len(distribution.grid()) for distribution in parameters.values())


def grid_point(parameters: Parameters, number: int) -> dict[str, Any]:
    """Return the samples for `value_of` at a point of the grid; the last one varies fastest."""
    point: dict[str, Any] = {}
    for name, distribution in reversed(parameters.items()):
        choices = distribution.grid()
        number, index = divmod(number, len(choices))
        point[name] = choices[index]
    return {name: point[name] for name in parameters}


def parse_parameters(data: Any, place: str, prefix: str, problems: Problems) -> Parameters:
    """Return dotted keys and their distributions; `parameters` in a parameter nests one level."""
    if not isinstance(data, dict) or not data:
        text = "must map dotted keys of the experiment to values, such as method.inner_lr"
        problems.append((place, text))
        return {}
    parameters: Parameters = {}
    for key, values in data.items():
        where, name = f"{place}.{key}", f"{prefix}{key}"
        if not isinstance(key, str) or not NAME.match(key) or not all(name.split(".")):
            text = "must be a dotted key of the experiment, such as method.inner_lr"
            problems.append((where, text))
            continue
        if isinstance(values, dict) and "parameters" in values:
            inside = f"{where}.parameters"
            nested = parse_parameters(values["parameters"], inside, f"{name}.", problems)
        else:
            distribution = None if name in parameters else _distribution(values, where, problems)
            nested = {name: distribution} if distribution else {}
            if name in parameters:
                problems.append((where, f"{name} occurs twice"))
        problems += [(where, f"{key} occurs twice") for key in nested if key in parameters]
        parameters |= nested
    return parameters


def _distribution(values: Any, place: str, problems: Problems) -> Distribution | None:
    if not isinstance(values, dict):
        forms = "a mapping such as {values: [...]} or {min: 0, max: 1}"
        problems.append((place, f"must be {forms}, not {values!r}"))
        return None
    name = values.get("distribution", default_distribution(values))
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        is_set = "distribution" in values
        text = f"unknown distribution {name!r}" if is_set else "set value, values, or min and max"
        problems.append((place, f"{text}; {did_you_mean(str(name), DISTRIBUTIONS)}"))
        return None
    distribution = validated(DISTRIBUTIONS[name], {**values, "distribution": name}, place, problems)
    return distribution if isinstance(distribution, Distribution) else None


def number_of_trials(cap: Any, method: Any, parameters: Parameters, problems: Problems) -> int:
    """Return the number of trials: `run_cap`, or all points of a grid."""
    if cap is not None and (type(cap) is not int or not 1 <= cap <= 10**6):
        problems.append(("run_cap", f"must be an integer from 1 to 1,000,000 (got {cap!r})"))
        return 0
    if method == "grid":
        for name, distribution in parameters.items():
            if not distribution.countable:
                text = "has no list of values for a grid: use values, int_uniform or q_uniform"
                problems.append((f"parameters.{name}", text))
        size = grid_size(
            {
                name: distribution
                for name, distribution in parameters.items()
                if distribution.countable
            }
        )
        if size > GRID_MOST:
            problems.append(("parameters", f"the grid has {size} points, more than {GRID_MOST}"))
        return size if cap is None else min(cap, size)
    if cap is None and method in ("random", "bayes"):
        text = f"is missing: {method} search has no end; set the number of trials"
        problems.append(("run_cap", text))
    return cap or 0
