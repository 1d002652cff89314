"""The sections of an experiment file that are not components: run, evaluate, budget, published."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import field_validator, model_validator

from metalearn.component import Component, option
from metalearn.evaluate.targets import least_level
from metalearn.tracking.settings import Track

Executor = Literal[
    "auto",
    "loop",
    "vmap",
    "traced",
    "chunk",
    "compiled",
    "compiled_loop",
    "compiled_steps",
    "graph",
    "compiled_graph",
]
Precision = Literal["float32", "tf32", "bf16"]
MOST_TRIALS = 100_000


class Validate(Component):
    """Model selection on validation tasks during training."""

    every: int | None = option(1000, "Meta-steps between two validations; null: never.", ge=1)
    episodes: int = option(
        200, "Number of validation tasks, and of training tasks, per validation.", ge=2
    )
    keep: int = option(1, "Number of best checkpoints to keep.", ge=1, le=50)
    patience: int | None = option(
        None, "Stop after this many validations without a new best; null: run to the end.", ge=1
    )


# The contract calls this key `validate`, the name of an attribute that pydantic keeps for old code
# only.
warnings.filterwarnings(
    "ignore", message='Field name "validate" in "Run" shadows', category=UserWarning
)


class Run(Component):
    """How a run is executed and stored."""

    meta_steps: int = option(1000, "Steps of meta-training or pretraining.", ge=0, le=10**9)
    tasks_per_step: int = option(16, "T, tasks in one meta-step.", ge=1, le=10**6)
    examples_per_step: int = option(
        64, "Batch size of methods that consume labelled examples.", ge=1, le=10**6
    )
    seeds: tuple[int, ...] = option(
        (0,), "Seeds of initial parameters and training tasks, one run each.", min_length=1
    )
    device: str = option(
        "auto", "Device: auto, cpu, cuda or cuda:<n>.", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    dtype: Literal["float32", "float64"] = option("float32", "Type of parameters and data.")
    threads: int | None = option(
        None, "CPU threads of torch; null: chosen automatically and recorded.", ge=1, le=1024
    )
    engine: Literal["native", "learn2learn", "higher"] = option(
        "native",
        "Package that computes the meta-gradients; learn2learn and higher are for cross-"
        "checks (one task at a time).",
    )
    executor: Executor = option(
        "auto", "How a meta-step is executed; auto chooses, and its choice is recorded."
    )
    chunk: int | None = option(
        None,
        "Tasks per chunk (executors chunk and compiled); null: chosen so that a step fits in "
        "memory, and recorded.",
        ge=1,
    )
    workers: int | None = option(
        None,
        "CPU threads that compute the chunks of a step, one core each; null: as run.threads, "
        "and recorded. Results do not depend on it.",
        ge=1,
        le=1024,
    )
    precision: Precision = option(
        "float32",
        "Precision of matrix products in the meta-gradient; the error of tf32 (CUDA) or bf16 "
        "is measured and recorded.",
    )
    deterministic: bool = option(
        False,
        "Raise an error for nondeterministic CUDA operators; no effect on a CPU.",
        later=True,
    )
    checkpoint_inner: bool = option(
        False,
        "Recompute activations of inner steps instead of storing them: the same gradient, less "
        "memory, more time.",
    )
    on_nan: Literal["raise", "skip", "rollback"] = option(
        "raise",
        "What to do when a step gives non-finite values: stop the run, or skip the step "
        "(rollback: accepted in old configs only).",
        later=True,
    )
    keep_last: int = option(
        2, "Number of newest checkpoints to keep, in addition to the best ones.", ge=1, le=1000
    )
    checkpoint_every: int = option(500, "Meta-steps between two checkpoints.", ge=1)
    log_every: int = option(50, "Meta-steps between two lines of metrics.jsonl.", ge=1)
    validate: Validate = option(Validate(), "Model selection on validation tasks.")  # type: ignore[assignment]
    track: Track = option(
        Track(), "Loggers of the run, in addition to metrics.jsonl, which is always complete."
    )

    @model_validator(mode="before")
    @classmethod
    def _other_engines_loop(cls, data: Any) -> Any:
        """Set executor loop for the engines of other packages: `auto` has nothing to time."""
        if not isinstance(data, dict) or data.get("executor", "auto") != "auto":
            return data
        foreign = data.get("engine", "native") in ("learn2learn", "higher")
        return {**data, "executor": "loop"} if foreign else data

    @model_validator(mode="after")
    def _executor_fits_engine(self) -> Run:
        if self.engine != "native" and self.executor != "loop":
            raise ValueError(
                f"executor {self.executor} cannot run the engine {self.engine}, which learns "
                f"one task at a time: "
                "use executor loop (auto takes it), or the engine native"
            )
        return self

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_seed(cls, seeds: Any) -> Any:
        """Read `seeds: 3` as [3]."""
        return (seeds,) if type(seeds) is int else seeds

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must be different (got {list(seeds)})")
        return seeds


class Target(Component):
    "When a task counts as solved."

    metric: Literal["accuracy", "loss"] = option("accuracy", "Metric on the query set.")
    value: float = option(0.9, "Threshold at which a task counts as solved.")


class Evaluate(Component):
    """The test: the same frozen episodes for every method."""

    task: dict[str, Any] = option(
        {}, "Overrides of the task section for the test tasks, key by key."
    )
    split: Literal["train", "valid", "test"] = option(
        "test", "Split from whose classes the new tasks are sampled."
    )
    episodes: int = option(600, "E, number of new tasks.", ge=1, le=1_000_000)
    seed: int = option(1, "Seed of the test episodes.")
    steps: tuple[int, ...] = option(
        (0, 1, 3, 5, 10),
        "Points of the learning curve, in inner steps on the support set.",
        min_length=1,
    )
    headline_step: int | Literal["tuned"] | None = option(
        None,
        "Point of the headline result; tuned: the best one on validation tasks; null: the last.",
    )
    checkpoint: Literal["last", "best", "ensemble"] = option(
        "best", "Meta-parameters to test; ensemble: the average over the best checkpoints."
    )
    target: Target | None = option(None, "When a task counts as solved.")
    targets: tuple[float, ...] = option(
        (),
        "Levels of the headline metric for which break-even counts are reported; empty: the "
        "target.",
        later=True,
    )
    along: tuple[float, ...] = option(
        (),
        "Fractions of meta-training at which intermediate checkpoints are also tested, as "
        "candidates of the decision map with shorter training.",
        later=True,
    )
    chunk: int = option(50, "Number of tasks adapted in parallel.", ge=1)

    @field_validator("along")
    @classmethod
    def _shares_ascend(cls, along: tuple[float, ...]) -> tuple[float, ...]:
        if list(along) != sorted(set(along)) or any(not 0 < fraction < 1 for fraction in along):
            raise ValueError(
                f"along must be ascending fractions between 0 and 1 (got {list(along)})"
            )
        return along

    @field_validator("targets")
    @classmethod
    def _targets_ascend(cls, targets: tuple[float, ...]) -> tuple[float, ...]:
        if list(targets) != sorted(set(targets)) or any(level <= 0 for level in targets):
            raise ValueError(f"targets must be > 0 and ascending (got {list(targets)})")
        return targets

    @model_validator(mode="after")
    def _steps_ascend(self) -> Evaluate:
        steps = list(self.steps)
        if steps != sorted(set(steps)) or steps[0] < 0 or steps[-1] > 100_000:
            text = f"steps must be ascending, without repeats, from 0 to 100,000 (got {steps})"
            raise ValueError(text)
        if isinstance(self.headline_step, int) and self.headline_step not in steps:
            raise ValueError(
                f"headline_step must be one of steps {steps} (got {self.headline_step})"
            )
        return self

    @model_validator(mode="after")
    def _along_one_checkpoint(self) -> Evaluate:
        if self.along and self.checkpoint == "ensemble":
            raise ValueError(
                "along compares the tested checkpoint with shorter training, but checkpoint: "
                "ensemble tests several, whose predictions cost several times as much: omit "
                "along, or use checkpoint: last or best"
            )
        return self

    @property
    def headline(self) -> int | str:
        return self.steps[-1] if self.headline_step is None else self.headline_step


def low_targets(evaluate: Evaluate, ways: int) -> list[tuple[str, str]]:
    """Return (key, problem) of levels of accuracy below `least_level`, or above 1."""
    named = {"evaluate.targets": evaluate.targets}
    if evaluate.target is not None:
        if evaluate.target.metric != "accuracy":
            return []
        named["evaluate.target.value"] = (evaluate.target.value,)
    least = least_level(1 / ways)
    rule = "twice chance" if ways > 2 else "halfway between chance and 1"
    problems = []
    for key, levels in named.items():
        low = [level for level in levels if level < least - 1e-9 or level > 1]
        if low:
            problems.append((key, f"must be between {least:.3g} ({rule}) and 1 (got {low})"))
    return problems


class Budget(Component):
    """The tuning budget, the same for every method."""

    trials: int = option(
        0, "Tuning trials per method that has a `tune` block.", ge=0, le=MOST_TRIALS
    )
    flops: float | None = option(
        None,
        "Tuning budget per method in FLOPs, instead of trials.",
        gt=0,
        later=True,
    )
    seed: int = option(0, "Seed of the search.", ge=0, lt=2**32)
    once: bool = option(
        False,
        "Tune with the first seed only; the other seeds reuse its values, and their costs include "
        "that tuning.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Budget:
        if self.trials and self.flops is not None:
            text = f"sets both trials ({self.trials}) and flops ({self.flops:g})"
            raise ValueError(f"{text}: set trials, or flops with trials: 0")
        return self

    @property
    def tunes(self) -> bool:
        """Whether the budget allows any tuning."""
        return self.trials > 0 or self.flops is not None


class Published(Component):
    """The number to reproduce."""

    value: float | None = option(None, "Published value at the headline step.")
    ci95: float | None = option(None, "Half width of its 95 % interval.", ge=0)
    curve: dict[int, float] = option({}, "Published values at several steps.")
    source: str = option("", "Paper and table.")
    reduced: str = option(
        "", "Reason for a reduced schedule; empty: the published schedule is used.", later=True
    )
    departures: str = option(
        "", "What differs from the published settings without a reduced schedule.", later=True
    )


class TuneRange(Component):
    """Values that tuning may try for one field, in the terms of a W&B sweep."""

    min: float | None = option(None, "Smallest value.")
    max: float | None = option(None, "Largest value.")
    values: tuple[Any, ...] | None = option(None, "List of values to choose from.", min_length=1)
    distribution: Literal["uniform", "log_uniform", "int_uniform", "categorical"] | None = option(
        None, "Distribution of the values."
    )

    @model_validator(mode="after")
    def _one_form(self) -> TuneRange:
        if self.values is not None:
            ends = self.min is not None or self.max is not None
            if ends or self.distribution not in (None, "categorical"):
                text = "set either values, or min and max with a numeric distribution"
                raise ValueError(text)
            return self
        if self.min is None or self.max is None or self.distribution == "categorical":
            raise ValueError("set either min and max, or values")
        if self.min >= self.max:
            raise ValueError(f"min must be < max (got {self.min} and {self.max})")
        if self.distribution == "log_uniform" and self.min <= 0:
            raise ValueError(f"log_uniform needs min > 0 (got {self.min})")
        return self
