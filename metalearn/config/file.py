"""The root model of an experiment file: its sections, and the entries of `method` and `methods`.

A section whose content depends on a component (`task`, `model`, `method`) is a mapping here and is
validated as that component once overlays are applied. A new section is one field of `File`, and a
line of `SECTIONS` where its model is fixed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictInt

from metalearn.component import Component, option
from metalearn.config.sections import Budget, Evaluate, Published, Run
from metalearn.config.validate import Problems, partly_validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.losses import check_name

DEFAULT_METHOD, DEFAULT_TASK, DEFAULT_MODEL = "maml", "glyphs", "conv4"
PYTHON = "python:"  # prefix of the name and hash of a loss that was passed as a function
OVERLAYS = ("task", "model", "run", "evaluate")
OWN_TEST = ("episodes", "chunk", "along")  # fields of evaluate that may differ within a comparison
SECTIONS: dict[str, type[Component]] = {
    "run": Run,
    "evaluate": Evaluate,
    "budget": Budget,
    "published": Published,
}


def loss_problems(name: str | None) -> Problems:
    """Return problems of the name of a loss; one that was passed as a function is not checked."""
    try:
        if name is not None and not name.startswith(PYTHON):
            check_name(name)
    except ConfigError as error:
        return list(error.problems)
    return []


def method_problems(data: dict[str, Any]) -> Problems:
    """Return problems of methods without a name; entries that are not mappings are not checked."""
    multiple, single = data.get("methods"), data.get("method")
    items = multiple if isinstance(multiple, list) else []
    places = [f"methods.{n}" for n, item in enumerate(items) if _is_nameless(item)]
    if multiple is None and (not single or _is_nameless(single)):
        places = ["method"]
    text = f"has no name: a file says which method it is for, such as name: {DEFAULT_METHOD}"
    return [(place, f"{text} (metalearn list methods)") for place in places]


def _is_nameless(item: Any) -> bool:
    return isinstance(item, dict) and "name" not in item


def get_label(item: dict[str, Any]) -> str:
    """Return the label of an item of `methods`: its `label`, else its name."""
    return str(item.get("name", DEFAULT_METHOD) if item.get("label") is None else item["label"])


def _name(value: str, forbidden: str = "/\\\0") -> str:
    if not value or any(c in value for c in forbidden) or value in (".", ".."):
        dots = " and dots" if "." in forbidden else ""
        raise ValueError(f"must be a name without slashes{dots} (got {value!r})")
    return value


def _label(value: Any) -> Any:
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return _name(str(value), "/\\\0.") if plain else value


def _methods(value: Any) -> Any:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, dict) for item in value)
    ):
        raise ValueError("must be a list of mappings, one per method, each with a `name`")
    return value


def _contrasts(value: Any) -> Any:
    if value is None:
        return None
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and pair[0] != pair[1]):
            raise ValueError(f"must be a list of pairs of labels such as [a, b] (got {pair!r})")
    return [[str(label) for label in pair] for pair in pairs]


def _start(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"must be a run directory or an experiment (got {value!r})")
    return value


def _genotype(value: Any) -> Any:
    is_valid = isinstance(value, list) and all(type(choice) is int for choice in value)
    if value is not None and not is_valid:
        raise ValueError(f"must be a genotype, a list of integers (got {value!r})")
    return value


Section = Annotated[dict[Any, Any], BeforeValidator(lambda value: {} if value is None else value)]


class File(Component):
    """An experiment file."""

    experiment: Annotated[str, BeforeValidator(lambda v: _name(v) if type(v) is str else v)] = (
        option("experiment", "Name of the experiment.")
    )
    task: Section = option({}, "The tasks.")
    model: Section = option({}, "The network.")
    method: Section = option({}, "The method of metalearn train.")
    methods: Annotated[list[dict[Any, Any]], BeforeValidator(_methods)] = option(
        [], "The methods of metalearn compare."
    )
    loss: str | None = option(
        None,
        "Loss of the tasks, in training and test: cross_entropy, mse, huber or bce (multi-label); "
        "null: cross_entropy for classes, mse for regression.",
    )
    run: Section = option({}, "How a run is executed and stored.")
    evaluate: Section = option({}, "The test.")
    budget: Section = option({}, "Tuning budget.")
    published: Section = option({}, "The published result.")
    contrasts: Annotated[list[list[str]] | None, BeforeValidator(_contrasts)] = option(
        None,
        "Pre-specified pairs of labels of methods to test against each other; null: "
        "pairs implied by the families of the methods.",
    )
    plugins: list[str] = option([], "Plug-in modules or .py files, imported first.")
    demonstration: bool = option(
        False, "Mark the comparison as a demonstration, not a benchmark.", strict=True
    )


class Entry(Component):
    """One method of a file; further keys are the fields of its component."""

    model_config = ConfigDict(extra="allow")

    label: Annotated[str | None, BeforeValidator(_label)] = option(None, "Name in results.")
    tune: Section = option({}, "Ranges of the fields to tune.")
    start: Annotated[str | None, BeforeValidator(_start)] = option(
        None, "Run directory or experiment whose meta-parameters initialise training."
    )

    def overlay(self, section: str) -> dict[str, Any]:
        """Return the overrides of a section of the file for this method."""
        return {}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the method's component."""
        return dict(self.model_extra or {})


class Row(Entry):
    """One method of a comparison, with overlays of the file's sections."""

    task: Section = option({}, "Overrides of the task section for this method.")
    model: Section = option({}, "Overrides of the model section for this method.")
    run: Section = option({}, "Overrides of the run section for this method.")
    evaluate: Section = option(
        {}, "Overrides of the evaluate section for this method: episodes, chunk and along."
    )

    def overlay(self, section: str) -> dict[str, Any]:
        if section not in OVERLAYS:
            return {}
        values = dict(getattr(self, section))
        return {k: v for k, v in values.items() if section != "evaluate" or k in OWN_TEST}


class Search(Component):
    """The part of an entry whose method searches a network for another method."""

    model_config = ConfigDict(extra="allow")

    contains: Section = option({}, "The method that is trained with each architecture.")
    found: Annotated[list[StrictInt] | None, BeforeValidator(_genotype)] = Field(
        None, description="The genotype found by the search."
    )


def parse_entry(item: dict[str, Any], comparison: bool, place: str, problems: Problems) -> Entry:
    """Parse the entry of one method; adds its problems, and uses defaults for invalid values."""
    entry = partly_validated(Row if comparison else Entry, item, place, problems)
    if isinstance(entry, Row):
        for key in sorted(map(str, set(entry.evaluate) - set(OWN_TEST))):
            text = "cannot differ within a comparison, which has one test for all methods"
            where = f"{place}.evaluate.{key}"
            problems.append((where, f"{text}; {did_you_mean(key, OWN_TEST)}"))
    return entry
