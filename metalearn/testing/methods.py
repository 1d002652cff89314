"""The contract of a method, for any component."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metalearn.component import MethodComponent
from metalearn.testing import learning_checks, method_checks
from metalearn.testing.case import TRAINING, Case, fields_set, inapplicable, method_case
from metalearn.testing.run_checks import run_checks

METHOD_CHECKS: list[Callable[[Case], None]] = [
    value
    for module in (method_checks, learning_checks)
    for name, value in vars(module).items()
    if name.startswith("check_") and value.__module__ == module.__name__
]
PATIENCE = 10  # times TRAINING, for options that were not chosen for the small problem


def check_method(
    component: type[MethodComponent] | MethodComponent, *, skip: Mapping[str, str] | None = None
) -> None:
    """Run the contract tests of methods on a component, with a small problem in float64.

    component: a class, which is built from its defaults, or an instance with options that suit a
        problem of 3 ways, 2 shots and 6 numbers, such as MAML(inner_lr=0.3, outer=Adam(lr=0.02)).
    skip: {name of a check: why it does not apply}.

    Raises AssertionError with every check that fails; TypeError if it is not a MethodComponent."""
    kind = component if isinstance(component, type) else type(component)
    if not issubclass(kind, MethodComponent):
        raise TypeError(f"{kind.__name__} is not a subclass of metalearn.component.MethodComponent")
    options: dict[str, Any] = {} if component is kind else fields_set(component)

    def build() -> Case:
        return method_case(kind, options)._replace(training=PATIENCE * TRAINING)

    run_checks(kind.__name__, build, METHOD_CHECKS, inapplicable, skip)
