"""Schemas of the files of run directories that others may have written or damaged.

Optional keys may be missing and additional keys are allowed; values are checked by type. Numbers
are finite and small enough to be plotted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metalearn.errors import ConfigError
from metalearn.storage.files import LARGEST, read_json, read_lines

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Maybe = Number | None
Row = Annotated[list[Maybe], Field(max_length=100_000)] | None
Text = Annotated[str, Field(max_length=10_000)]
MAX_PROBLEMS = 5  # in one message


class Open(BaseModel):
    """Keys with a default may be missing, and additional keys are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Task(Open):
    source: Text | None = None
    split: Text | None = None
    ways: Count | None = None
    shots: Count | None = None
    queries: Count | None = None
    order: Text | None = None  # column: the support rows are the first ones in its order
    chance: Maybe = None
    ranges: dict[str, Any] | None = None


class _Episodes(Open):
    count: Count | None = None
    fingerprint: Text | None = None


class _Traits(Open):
    consumes: Text = "nothing"
    uses_steps: bool = True
    support_at_step_0: bool = False
    transductive: bool = False


class _Test(Open):
    steps: list[Annotated[int, Field(ge=0, le=10**6)]] = Field(min_length=1, max_length=100_000)
    accuracy: Row = None
    accuracy_ci95: Row = None
    loss: Row = None
    loss_ci95: Row = None
    loss_median: Row = None
    loss_converged: Row = None
    loss_converged_ci95: Row = None
    diverged: Row = None
    nll: Row = None
    nll_ci95: Row = None
    nll_left_out: Row = None
    calibration_error: Row = None
    calibration_floor: Row = None


class _Headline(Open):
    metric: Literal["accuracy", "loss"]
    step: Count
    value: Maybe = None
    ci95: Maybe = None
    published: Maybe = None
    published_ci95: Maybe = None
    published_curve: dict[Annotated[str, Field(pattern=r"^\d{1,6}$")], Maybe] | None = None


class _Spent(Open):
    device: Text | None = None
    once: dict[str, Number | Text | None] | None = None
    first_pass: dict[str, Maybe] | None = None
    own: dict[str, Maybe] | None = None  # if others have spent the rest
    rounds: dict[str, list[Number]] | None = None
    __pydantic_extra__: dict[str, Number | Text | None]


class _Timing(Open):
    """How the seconds of new tasks were measured again after training."""

    rounds: Count
    of_seed: Count | None = None  # rounds in which this seed of the method was timed; None: all
    of_method: Count | None = None  # rounds of seeds with equal FLOPs, medians of which count
    others: Maybe = None


class _Split(Open):
    """The classes or groups of a split of the user's data."""

    rule: Text
    count: Count
    names: Annotated[list[Text], Field(max_length=100)]


class _Validation(Open):
    """What validation tasks are sampled from."""

    pool: Count | None = None  # different groups or sets of classes
    split: _Split | None = None


class _Tuned(Open):
    on_edge: list[str] = []


class _Inductive(Open):
    normalisation: Text | None = None
    step: Count | None = None
    value: Maybe = None
    ci95: Maybe = None
    why: Text | None = None


class _Stage(Open):
    fields: list[Text] = []
    trials: Count
    flops: Maybe = None
    largest_flops: Maybe = None
    scores: Row = None
    best_so_far: Row = None


class _Tuning(Open):
    trials: Count | None = None
    flops: Maybe = None
    once: bool = False
    seed: int | None = None
    stages: list[_Stage] = Field(default=[], max_length=10)


class _Single(Open):
    step: Count
    value: Maybe
    ci95: Maybe


class _Later(Open):
    flops: Maybe = None
    seconds: Maybe = None


class _Along(Open):
    step: Count
    later: _Later


class Result(Open):
    """result.json, schema 1, as reports, comparisons and tests of a run read it."""

    label: Text
    seed: int
    test: _Test
    headline: _Headline
    experiment: Text | None = None
    method: Text | None = None
    family: Text | None = None
    place: Count | None = None
    acts_on_new_tasks: bool | None = None
    checkpoint_step: Count | None = None
    task: _Task | None = None
    episodes: _Episodes | None = None
    traits: _Traits | None = None
    cost: dict[str, _Spent] | None = None
    tuned: _Tuned | None = None
    timing: _Timing | None = None
    tuning: _Tuning | None = None
    inductive: _Inductive | None = None
    validation: _Validation | None = None
    test_split: _Split | None = None
    single: _Single | None = None
    along: list[_Along] | None = None
    uncounted: dict[str, str] | None = None
    factors: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    seconds: Maybe = None
    search_seed: int | None = None


class Target(Open):
    metric: Literal["accuracy", "loss"]
    value: float
    label: Text | None = None  # the method whose validation score it is from
    tasks: Count | None = None  # validation tasks of that score
    pool: Count | None = None  # different groups or sets of classes that they are of


class _Method(Open):
    name: Text | None = None
    tune: dict[str, dict[str, Any]] | None = None
    contains: dict[str, Any] | None = None
    candidates: Count | None = None


class _Evaluate(Open):
    target: Target | None = None


class _Budget(Open):
    trials: Count | None = None
    flops: Maybe = None
    once: bool = False


class Config(Open):
    """config.yaml, as reports read it."""

    task: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    method: _Method | None = None
    evaluate: _Evaluate | None = None
    budget: _Budget | None = None


class Line(Open):
    """A line of metrics.jsonl."""

    kind: Text = ""
    split: Text | None = None
    step: Count
    accuracy: Maybe = None
    loss: Maybe = None
    __pydantic_extra__: dict[str, Number | Text | None]


class Timing(Open):
    """A line of timing.jsonl."""

    step: Count
    wall: Number = 0.0
    spent: dict[str, dict[str, Number | Text | None]] = {}


class _Tasks(Open):
    kind: Literal["classification", "regression"]
    ways: Count
    shots: Count
    queries: Count
    x_shape: Annotated[list[Count], Field(max_length=16)]
    outputs: Count
    num_classes: Count
    split: Text
    data_sha256: Text = ""
    facts: dict[str, Any] = {}


class Environment(Open):
    """environment.json."""

    argv: list[str] | str | None = None
    device: Text | None = None
    config_hash: Text | None = None
    weights_sha256: Text | None = None  # of weights that were trained elsewhere
    tasks: dict[Literal["train", "test"], _Tasks] = {}


class _Trial(Open):
    number: Count = 0
    parameters: dict[str, Any] = {}
    score: float | None = None
    step: Count | None = None
    cost: dict[str, Number | Text | None] = {}


class Choice(Open):
    """tune/training.json and tune/best.json: what tuning chose."""

    parameters: dict[str, Any]
    trials: list[_Trial]
    edge: list[str] = []
    headline_step: Count | None = None
    headline: _Trial = _Trial()


class _Round(Open):
    others: Maybe
    load_average: list[list[Number] | None]
    clock_mhz: Maybe
    seconds: dict[str, dict[str, dict[str, Number]]]


class RowsTiming(Open):
    """timing.json of a comparison: seconds of new tasks by method, kind and phase in each round."""

    rows: dict[str, str]
    first_call: dict[str, Number]
    rounds: list[_Round]


_Contrasts = list[Annotated[list[Text], Field(min_length=2, max_length=2)]] | None


class _Requested(Open):
    """Contrasts and labels of one request, and how many rows had finished by then."""

    contrasts: _Contrasts = None
    labels: list[Text] = []
    defaults: Count = 1  # version of the contrasts by family
    finished: Count | None = None


class Request(Open):
    """comparison-request.json."""

    target: Target | None = None
    demonstration: bool = False
    labels: list[Text] = []
    contrasts: _Contrasts = None
    requests: list[_Requested] = []  # absent if made by an earlier version


class _Metric(Open):
    name: Text
    goal: Literal["minimize", "maximize"]


class _SweepTrial(Open):
    number: Count
    parameters: dict[str, Any]
    value: Maybe
    state: Literal["complete", "pruned", "failed"]


class SweepFile(Open):
    """sweep.json, schema 1."""

    metric: _Metric
    best: Count | None
    trials: list[_SweepTrial]


def read_result(folder: Path) -> dict[str, Any]:
    """Return result.json of a finished run."""
    return check_schema(Result, read_json(folder / "result.json"), folder / "result.json")


def check_lines(kind: type[BaseModel], path: Path) -> None:
    """Raise ConfigError if a line does not fit the schema; an incomplete last line is allowed."""
    for number, row in enumerate(read_lines(path), start=1):
        check_schema(kind, row, f"{path}, line {number}")


def check_schema(kind: type[BaseModel], data: Any, file: object) -> dict[str, Any]:
    """Return the data if it fits the schema. Raises ConfigError with the keys that do not."""
    try:
        kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        keys = [".".join(str(part) for part in problem["loc"]) for problem in errors]
        problems = [
            (f"{file}: {key}" if key else str(file), detail["msg"])
            for key, detail in zip(keys, errors)
        ]
        raise ConfigError(*dict.fromkeys(problems[:MAX_PROBLEMS])) from error
    return dict(data)
