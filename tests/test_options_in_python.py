"""Options of components that Python gives: refused in the sentences of an experiment file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metalearn as ml
from metalearn.config.experiment import parse

OPTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"inner_lrr": 0.1}, ("unknown key; did you mean 'inner_lr'? valid: adapts, first_order",)),
    (
        {"inner_lr": "abc", "inner_steps": 1.5},
        ("must be a valid integer, got a number with", "must be a valid number", "(got 'abc')"),
    ),
    ({"inner_lr": None}, ("must be a valid number (got None)",)),
    ({"inner_lr": -1}, ("must be greater than 0 (got -1)",)),
    ({"inner_lr": True}, ("must not be true or false (got True)",)),
    (
        {"outer": {"name": "adam", "lrr": 1}},
        (
            "outer",
            "did you mean 'lr'? valid: beta1",
        ),
    ),
    ({"outer": {"name": "adamm"}}, ("unknown rule 'adamm'; did you mean 'adam'?",)),
    ({"outer": 3}, ("must be a mapping with a name, one of sgd, momentum, adam (got 3)",)),
    (
        {"inner": {"name": "adam"}, "inner_lr": 0.5, "inner_steps": "x"},
        ("must be a valid integer", "omit inner_lr"),
    ),
    ({"inner_lr": True, "inner_step": 1}, ("true or false", "did you mean 'inner_steps'?")),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_python_gives_all_the_sentences_of_a_file(
    options: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        ml.algorithms.MAML(**options)
    with pytest.raises(ml.ConfigError) as from_file:
        parse({"task": {"source": "sinusoid"}, "method": {"name": "maml", **options}})
    text = str(caught.value)
    for _, sentence in from_file.value.problems:
        assert sentence in text, text
    for word in words:
        assert word in text, text
    assert "Input should" not in text and "input_value" not in text
    assert "errors.pydantic.dev" not in text and "Extra inputs" not in text


def test_components_inside_components_are_explained() -> None:
    with pytest.raises(ValueError, match=r"sources.0: wayss: unknown key; did you mean 'ways'"):
        ml.tasks.Mixture(sources=[{"source": "glyphs", "wayss": 3}])
    with pytest.raises(ValueError, match=r"sources.0: ways: must be greater than .* 2"):
        parse({"task": {"source": "mixture", "sources": [{"source": "glyphs", "ways": 1}]}})


def test_fields_of_truth_take_true_and_positions_stay_as_they_are() -> None:
    assert ml.algorithms.MAML(first_order=True).first_order
    with pytest.raises(ValueError, match="did you mean 'head'"):
        ml.models.Module(torch.nn.Linear(6, 2), heaad="new")  # the module by its position
    with pytest.raises(TypeError, match="positional"):
        ml.models.MLP(5)  # type: ignore[call-arg]
