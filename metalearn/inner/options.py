"""Options of methods that adapt with an update rule: which rule, and which parameters."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.rules import Rule, rate_as_input, sgd
from metalearn.rng import fold_in
from metalearn.tree import trainable
from metalearn.types import EpisodeSpec, Learner, UpdateRule

INNER = "Update rule of the inner loop, with its own lr; null: gradient descent with inner_lr."


def inner_rule_option(sentence: str = INNER, **options: Any) -> Any:
    """The field `inner`: any rule of the table instead of gradient descent."""
    return option(None, sentence, later=True, **options)


def refuse_two_rules(component: Any, *names: str, scheduled: bool = True) -> None:
    """Raise ValueError if options of the default rule are set in addition to `inner`.

    Also for a schedule of a rule without a number of steps."""
    inner: Rule | None = component.inner
    if inner is None:
        return
    fields = type(component).model_fields
    ignored = [name for name in names if getattr(component, name) != fields[name].default]
    if ignored:
        raise ValueError(f"inner is a rule with its own lr: omit {', '.join(ignored)}")
    if not scheduled and inner.schedule not in ("constant", "steps"):
        text = f"inner.schedule {inner.schedule} needs a number of steps, which new tasks of"
        raise ValueError(f"{text} {component.name} do not have: use constant")


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _rate_range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"must be [low, high] with 0 <= low <= high (got {list(value)})")
    return value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
RateRange = Annotated[tuple[float, float], AfterValidator(_rate_range)]


class InnerLoop(MethodComponent):
    """A method whose inner loop takes `inner_steps` steps of a rule in training."""

    rate_is_input: ClassVar[bool] = True
    inner_steps: int = option(1, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.01, "Inner step size, in training and on new tasks.", gt=0)
    inner: Rule | None = inner_rule_option()

    def inner_rule(self, spec: EpisodeSpec) -> UpdateRule:
        """The rule of the inner loop, in training and on new tasks; a variant overrides it."""
        default_rule = sgd(rate_as_input(self.inner_lr, spec))
        return default_rule if self.inner is None else self.inner.build(self.inner_steps)

    @model_validator(mode="after")
    def _check_inner(self) -> Self:
        refuse_two_rules(self, "inner_lr")
        return self


def adapts_option() -> Any:
    """The field `adapts`: which parameters a new task updates."""
    text = "Parameters that are adapted to a new task, by name or pattern such as "
    return option(None, text + "[layer4.*, head]; null: all.", later=True)


def adapted_filter(patterns: tuple[str, ...] | None, learner: Learner) -> Callable[[str], bool]:
    """The predicate on parameter names: whether a new task updates the parameter.

    A pattern is a name, the front of one up to a dot, or contains *, ? and [] as file names do.
    Names of the torch module that the learner was built from match, too. Raises ConfigError for a
    pattern that matches no parameter."""
    if patterns is None:
        return lambda name: True
    names = list(trainable(learner.init(fold_in(0, "names")))[0])
    leaf_of = {name: name for name in names}
    leaf_of |= {name: leaf for name, leaf in learner.aliases if leaf in leaf_of}
    matches = {
        pattern: [leaf for name, leaf in leaf_of.items() if _matches(name, pattern)]
        for pattern in patterns
    }
    unknown = [pattern for pattern, leaves in matches.items() if not leaves]
    if unknown or not patterns:
        some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        text = f"{', '.join(map(repr, unknown)) or 'nothing'} is not a trainable parameter; "
        raise ConfigError(("adapts", f"{text}valid: {some} (the last layer is head)"))
    return frozenset(name for leaves in matches.values() for name in leaves).__contains__


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
