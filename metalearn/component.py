"""The form of every component: a frozen pydantic model with a sentence for each field."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from metalearn.errors import did_you_mean, explained_call
from metalearn.types import Episode, EpisodeSpec, Key, Learner, Method, TaskSource, UpdateRule
from metalearn.variable_tasks import Range, read_ranges, with_ranges

CHOICE = "architecture.json"  # file of Method.prepare in its folder: genotype, words, trials
FirstTasks = Callable[[int], tuple[Episode, Key]]  # count -> the first test tasks, keys of learning
Acts = Literal["train", "adapt", "both"]
Engine = Literal["all", "head", "body"] | None
LONGEST_VALUE = 60  # characters of a value in a message


if TYPE_CHECKING:  # type checkers read arguments from the fields if there is no __call__
    from pydantic._internal._model_construction import ModelMetaclass as ComponentType
else:

    class ComponentType(type(BaseModel)):
        """The metaclass of components: reports invalid options in the same sentences as files."""

        def __call__(cls, *args, **options):
            return explained_call(cls, super().__call__, args, options)


class Component(BaseModel, metaclass=ComponentType):
    """A frozen, validated set of options; the subclasses below say what `build` makes of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _read_paths(cls, data: Any) -> Any:
        """Convert paths to text, as a file has them."""
        if not isinstance(data, dict):
            return data
        return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in data.items()}

    @classmethod
    def sentence(cls) -> str:
        """Return the first sentence of the docstring, which `metalearn list` shows."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    @classmethod
    def acts_of(cls, field: str) -> str:
        """Return when a field takes effect: `train`, `adapt` (on a new task), or `both`."""
        extra = cls.model_fields[field].json_schema_extra
        return str(extra.get("acts", "both")) if isinstance(extra, dict) else "both"

    @classmethod
    def fixed_by_training(cls) -> tuple[str, ...]:
        """Return the names of the fields that say what a trained network reads and predicts."""
        extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return tuple(n for n, e in extras.items() if isinstance(e, dict) and e.get("fixed"))

    def without_later(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` of this component without the later fields at their defaults."""
        remaining = dict(data)
        for name, info in type(self).model_fields.items():
            value, extra = getattr(self, name), info.json_schema_extra
            if isinstance(extra, dict) and extra.get("later") and value == info.default:
                remaining.pop(name, None)
            elif isinstance(value, Component) and isinstance(remaining.get(name), dict):
                remaining[name] = value.without_later(remaining[name])
        return remaining

    @classmethod
    def fields_at_adapt(cls) -> set[str]:
        """Return the names of fields that act only on new tasks: tuning them reuses the meta."""
        return {name for name in cls.model_fields if cls.acts_of(name) == "adapt"}


class TaskComponent(Component, ABC):
    """Where tasks come from; `source` is its name in a file."""

    default_model: ClassVar[str] = ""  # where the file names no model; "": the common default
    split_fields: ClassVar[tuple[str, ...]] = ()  # that say which classes or rows a split has
    source: str
    _ranges: dict[str, Range] = PrivateAttr(default_factory=dict)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        if "build" in cls.__dict__:
            cls.build = with_ranges(cls.build)  # type: ignore[method-assign]

    @model_validator(mode="wrap")
    @classmethod
    def _read_ranges(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """`ways` and `shots` may be ranges [low, high]; the field holds the upper end."""
        if not isinstance(data, dict):
            return handler(data)
        plain, ranges = read_ranges(data)
        component = handler(plain)
        component._ranges = ranges
        return component

    @model_serializer(mode="wrap")
    def _write_ranges(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **{name: list(limits) for name, limits in self._ranges.items()}}

    @property
    def ranges(self) -> dict[str, Range]:
        """The ranges of `ways` and `shots`, where they are variable."""
        return self._ranges

    @property
    def trains_on_validation(self) -> bool:
        """Whether training samples from the validation classes, which then cannot select."""
        return False

    @property
    def num_test_tasks(self) -> int | None:
        """The number of tasks of the test split, where they are a fixed list."""
        return None

    @property
    def splits_are_labelled(self) -> bool:
        """Whether the spec of each split says its name; not of one source for all splits."""
        return True

    @property
    def loss_problems(self) -> list[tuple[str, str]]:
        """Return why this package's losses are not defined for the targets; else empty."""
        return []

    @abstractmethod
    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TaskSource:
        """Return the tasks of one split."""

    def resolve(self, seed: int) -> TaskComponent:
        """Return the task with everything that `seed` samples stored, for a resolved config."""
        return self

    def after_training_on(self, trained: TaskComponent) -> TaskComponent:
        """Return the test task with the values that training on the resolved `trained` fixed."""
        del trained
        return self

    def without_implied(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` of this task without the resolved values that a config's hash omits."""
        return data

    @property
    def fixed_values(self) -> dict[str, Any]:
        """The fields in use that must have the same value in the test and in training."""
        return {name: getattr(self, name) for name in self.fixed_by_training()}

    def contradictions(self, trained: TaskComponent) -> list[tuple[str, str]]:
        """Return (field, sentence) pairs: why a network trained on the resolved `trained` would
        misread these tasks. Empty for tasks of another source."""
        if type(self) is not type(trained):
            return []
        before, now = trained.fixed_values, self.fixed_values
        why = "the network would get other numbers than it was trained on, or be asked for others"
        return [
            (
                name,
                f"is {_abbreviate(now[name])}, and in training {_abbreviate(before[name])}: {why}",
            )
            for name in now
            if name in before and now[name] != before[name]
        ]

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """Names of the columns of a table that are the inputs, in their order; None without."""
        return None

    @property
    def pixels_in_unit(self) -> bool:
        """Whether inputs are images with pixels in 0..1."""
        return False

    @property
    def transform(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Function from the inputs [B, *X] of a user to those of the tasks; None: the identity."""
        return None

    @property
    def target_moments_used(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Means [C] and standard deviations [C] that standardise the tasks' targets, or None."""
        return None

    @property
    def changes_rows(self) -> bool:
        """Whether a resolved task has a `transform`, or standardises its targets."""
        return self.transform is not None


class ModelComponent(Component, ABC):
    """A model, as pure functions of its parameters."""

    name: str

    @abstractmethod
    def build(self, spec: EpisodeSpec) -> Learner:
        """Return the learner for tasks of `spec`."""

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Origin and training cost of pretrained weights; None without them.

        `backbone`, `licence`, `trained_on`, `overlap`, `parameters`, `pretrain_flops` (a number or
        "unknown") and its `pretrain_source`; with `weights_sha256`, loading a run raises an error
        if these are not the weights that it was made with."""
        return None


class RuleComponent(Component, ABC):
    """A hand-designed update rule."""

    name: str

    @abstractmethod
    def build(self, steps: int | None = None) -> UpdateRule:
        """Return the rule; `steps` is the length of its schedule, None: a constant rate."""


class MethodComponent(Component, ABC):
    """One way of learning new tasks, with the facts about it that other code needs."""

    family: ClassVar[str] = "initialization"  # its family in reports
    palette_index: ClassVar[int] = (
        100  # of its colour in figures' palette; beyond it: the next free one
    )
    rate_is_input: ClassVar[bool] = False  # a compiled step takes its inner rate as an input
    engine_trains: ClassVar[Engine] = None  # what the inner loop updates, if run.engine can train
    contains_by_default: ClassVar[str | None] = None  # of a method that holds another: its name
    can_be_contained: ClassVar[bool] = True  # a search may choose the model that it learns with
    controls_searches: ClassVar[bool] = False  # with a tuned step size, it is a search's control
    needs_meta_steps: ClassVar[bool] = False  # a training step depends on how many there will be
    # branch of the meta with a learned rule or a rule's state; initialized if `start` has none
    rule_branch: ClassVar[str | None] = None
    name: str

    @abstractmethod
    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Return the method for tasks of `spec`; `meta_steps` if the outer rule has a schedule."""

    @property
    def gradients_per_task(self) -> int:
        """Gradient evaluations on one task in one meta-step: the inner steps and the outer one."""
        return int(dict(self).get("inner_steps", 0)) + 1

    @property
    def minibatches(self) -> tuple[int | None, int | None]:
        """Support examples per inner step, (in training, on new tasks); None: all of them."""
        return None, None

    @classmethod
    def acts_on_new_tasks(cls) -> bool:
        """Return whether it has a field that acts when a new task is learned."""
        return any(cls.acts_of(name) != "train" for name in cls.model_fields if name != "name")

    @property
    def needs_start(self) -> str:
        """Why it requires `start`, another run's meta: the end of a sentence; else empty."""
        return ""

    @property
    def factors(self) -> dict[str, str]:
        """Parts that reports tell apart, such as {"start": "random"}; the others are inferred."""
        return {}

    @property
    def controls(self) -> dict[str, tuple[str, MethodComponent]]:
        """Control methods that a comparison adds: {suffix of the label: (sentence, method)}."""
        return {}

    @property
    def learned_rule(self) -> Component | None:
        """The update rule that it learns, or None."""
        return None

    @property
    def rule_steps(self) -> int | None:
        """Largest number of steps that the learned rule is trained for; None without one."""
        return None

    def found_learner(
        self, genotype: tuple[int, ...], learner: Learner, spec: EpisodeSpec
    ) -> Learner:
        """Return the learner of the architecture that its search found, normalised as `learner`."""
        del genotype, spec
        return learner

    def selection(
        self, method: Method, notes: dict[str, torch.Tensor], tasks: FirstTasks, steps: int
    ) -> dict[str, Any] | None:
        """Return the arrays of selection.npz, from the notes of a test after `steps` steps.

        `score` [R, A] is the criterion that selected among the candidates of R tasks, `truth`
        [R, A] their score on queries; None if there were no candidates."""
        del method, notes, tasks, steps
        return None


@dataclass(frozen=True)
class OneOf:
    """Marks the type of a field as one of the components of a table, by their names.

    The table may grow: what `register` adds to it is also accepted. In pydantic's terms it is a
    union with the discriminator `name` whose members are looked up when a value is validated."""

    table: Mapping[str, type[Component]]
    base: type[Component]
    kind: str  # in messages: "rule"

    def __hash__(self) -> int:
        return hash((id(self.table), self.base))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        del source, handler
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self._validated, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        del schema, handler
        return {"type": "object"}

    def _validated(self, value: Any) -> Component:
        if isinstance(value, self.base):
            return value
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in self.table:
            text = f"unknown {self.kind} {name!r}; {did_you_mean(str(name), self.table)}"
            if name is None:
                text = f"must be a mapping with a name, one of {', '.join(self.table)}"
            raise PydanticCustomError("unknown_component", "{text}", {"text": text})
        try:
            return self.table[name].model_validate(value)
        except ValidationError as error:
            lines: Any = error.errors(include_url=False)
            for line in lines:  # as of a union, with the tag before the field
                line["loc"] = (name, *line["loc"])
            raise ValidationError.from_exception_data(error.title, lines) from None


def _abbreviate(value: Any) -> str:
    """Return a value of a field as a file has it, truncated if it is long."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..."


def option(
    default: Any,
    sentence: str,
    *,
    acts: Acts = "both",
    later: bool = False,
    fixed_by_training: bool = False,
    **limits: Any,
) -> Any:
    """Declare a field with its help text, its limits and the phase in which it takes effect.

    `later` marks a field that was added after schema 1: it enters a config's hash only if it
    differs from its default. `fixed_by_training` marks a field of a task that says what a network
    reads or predicts: a test of the network must have the same value.

    >>> from typing import Literal
    >>> class Wide(ml.models.MLP):
    ...     name: Literal["wide"] = ml.option("wide", "The model.")
    ...     factor: int = ml.option(2, "How much wider.", ge=1)
    >>> Wide(factor=3).factor
    3
    """
    marks = {"later": later, "fixed": fixed_by_training}
    extra: dict[str, Any] = {"acts": acts, **{name: True for name, on in marks.items() if on}}
    return Field(default, description=sentence, json_schema_extra=extra, **limits)
