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
    """`name=value` as the command line takes it; the value comes back the same from YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return f"{name}={text.removesuffix(chr(10)).removesuffix('...').strip()}"


def grid_size(parameters: Parameters) -> int:
    """Number of points of the grid."""
    return math.prod(len(found.grid()) for found in parameters.values())


def grid_point(parameters: Parameters, number: int) -> dict[str, Any]:
    """What `value_of` takes at the point of that number; the last parameter changes fastest."""
    point: dict[str, Any] = {}
    for name, found in reversed(parameters.items()):
        choices = found.grid()
        number, index = divmod(number, len(choices))
        point[name] = choices[index]
    return {name: point[name] for name in parameters}


def parse_parameters(data: Any, place: str, prefix: str, problems: Problems) -> Parameters:
    """Dotted keys and their distributions; `parameters` inside a parameter is one more level."""
    if not isinstance(data, dict) or not data:
        text = "must map dotted keys of the experiment to values, such as method.inner_lr"
        problems.append((place, text))
        return {}
    found: Parameters = {}
    for key, values in data.items():
        where, name = f"{place}.{key}", f"{prefix}{key}"
        if not isinstance(key, str) or not NAME.match(key) or not all(name.split(".")):
            text = "must be a dotted key of the experiment, such as method.inner_lr"
            problems.append((where, text))
            continue
        if isinstance(values, dict) and "parameters" in values:
            inside = f"{where}.parameters"
            more = parse_parameters(values["parameters"], inside, f"{name}.", problems)
        else:
            made = None if name in found else _distribution(values, where, problems)
            more = {name: made} if made else {}
            if name in found:
                problems.append((where, f"{name} occurs twice"))
        problems += [(where, f"{key} occurs twice") for key in more if key in found]
        found |= more
    return found


def _distribution(values: Any, place: str, problems: Problems) -> Distribution | None:
    if not isinstance(values, dict):
        forms = "a mapping such as {values: [...]} or {min: 0, max: 1}"
        problems.append((place, f"must be {forms}, not {values!r}"))
        return None
    name = values.get("distribution", default_distribution(values))
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        given = "distribution" in values
        text = f"unknown distribution {name!r}" if given else "set value, values, or min and max"
        problems.append((place, f"{text}; {did_you_mean(str(name), DISTRIBUTIONS)}"))
        return None
    made = validated(DISTRIBUTIONS[name], {**values, "distribution": name}, place, problems)
    return made if isinstance(made, Distribution) else None


def number_of_trials(cap: Any, method: Any, parameters: Parameters, problems: Problems) -> int:
    """How many trials there are: `run_cap`, or all points of a grid."""
    if cap is not None and (type(cap) is not int or not 1 <= cap <= 10**6):
        problems.append(("run_cap", f"must be an integer from 1 to 1,000,000 (got {cap!r})"))
        return 0
    if method == "grid":
        for name, found in parameters.items():
            if not found.countable:
                text = "has no list of values for a grid: use values, int_uniform or q_uniform"
                problems.append((f"parameters.{name}", text))
        size = grid_size({name: found for name, found in parameters.items() if found.countable})
        if size > GRID_MOST:
            problems.append(("parameters", f"the grid has {size} points, more than {GRID_MOST}"))
        return size if cap is None else min(cap, size)
    if cap is None and method in ("random", "bayes"):
        text = f"is missing: {method} search has no end; set the number of trials"
        problems.append(("run_cap", text))
    return cap or 0
