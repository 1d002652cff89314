"""What others call by name: the arguments of a method's functions and of components."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from checks import case, episodes

from metalearn.config.registry import METHODS
from metalearn.rng import fold_in
from metalearn.tree import take

ARGUMENTS = {
    "learn": ("meta", "support", "query_x", "steps", "key", "ledger"),
    "adapt": ("meta", "support", "step", "key"),
    "predict": ("meta", "adapted", "support", "query_x"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_functions_of_a_method_take_their_arguments_by_name(name: str) -> None:
    method = case(name, METHODS[name]).method
    for field, arguments in ARGUMENTS.items():
        function: Callable[..., Any] | None = getattr(method, field)
        if function is not None:
            inspect.signature(function).bind(**dict.fromkeys(arguments))


def test_a_mean_is_predicted_by_name() -> None:
    """Methods that predict a distribution hand the arguments on."""
    given = case("conditional_neural_process", METHODS["conditional_neural_process"])
    meta, one = given.state().meta, take(episodes(given), 0)
    assert given.method.adapt is not None and given.method.predict is not None
    adapted = given.method.adapt(meta=meta, support=one.support, step=0, key=fold_in(0))
    named = {"meta": meta, "adapted": adapted, "support": one.support, "query_x": one.query.x}
    found = given.method.predict(**named)
    assert found.shape == (len(one.query.x), given.method.spec.outputs)
