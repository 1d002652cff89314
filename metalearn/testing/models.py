"""The contract of a model, for any component."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from metalearn.component import ModelComponent
from metalearn.errors import ConfigError
from metalearn.rng import fold_in, normal
from metalearn.testing.case import F64, POLICIES, fields_set
from metalearn.testing.form import check_form
from metalearn.testing.run_checks import run_checks
from metalearn.testing.sentences import expect_close, expect_same
from metalearn.types import EpisodeSpec, Learner, Params

KEY = fold_in(21, "models")
IMAGE = EpisodeSpec("classification", 3, 2, 4, (1, 16, 16), 3, 20, dtype=F64)
VECTOR = EpisodeSpec("classification", 3, 2, 4, (6,), 3, 20, dtype=F64)


class ModelCase(NamedTuple):
    """A model with its options, and the tasks that it is built for."""

    component: ModelComponent
    spec: EpisodeSpec

    def learner(self, dtype: torch.dtype = F64) -> Learner:
        return self.component.build(dataclasses.replace(self.spec, dtype=dtype))


Check = Callable[[ModelCase], None]


def perturbed_params(learner: Learner) -> Params:
    """Return parameters without special values: gains not 1, biases and statistics not 0."""
    params = learner.init(KEY)
    shifted = {
        name: v + 0.1 * normal(fold_in(KEY, "moved", name), v.shape, v.dtype).abs()
        for name, v in params.items()
    }
    return {
        name: value if name.endswith("weight") and value.dim() > 1 else shifted[name]
        for name, value in params.items()
    }


def data(learner: Learner, count: int, name: str = "x") -> Tensor:
    """Sample inputs [count, *X]."""
    return normal(fold_in(KEY, name), (count, *learner.x_shape), F64)


def check_component(case: ModelCase) -> None:
    """Frozen, equal after JSON, a sentence for every field, unknown fields refused."""
    check_form(type(case.component), fields_set(case.component))


def check_outputs_have_their_shape(case: ModelCase) -> None:
    """[B, C], finite, in the dtype of the parameters."""
    learner = case.learner()
    out = learner.apply(perturbed_params(learner), data(learner, 9))
    outputs = case.spec.outputs
    assert learner.outputs == outputs, (
        f"learner.outputs must be that of the spec, {outputs}, and is {learner.outputs}"
    )
    assert out.shape == (9, outputs) and out.dtype == F64, (
        f"the outputs for 9 inputs must be {F64} of shape (9, {outputs}), and are {out.dtype} of "
        f"shape {tuple(out.shape)}"
    )
    assert out.isfinite().all(), "the outputs must be finite, and some are not"


def check_features_run_without_the_head_and_the_head_is_a_linear_layer(case: ModelCase) -> None:
    """`features` [B, D] needs no head.*; `apply` is its product with head.weight [C, D]."""
    learner = case.learner()
    params, x, context = perturbed_params(learner), data(learner, 5), data(learner, 6, "context")
    body = {name: value for name, value in params.items() if not name.startswith("head.")}
    head = sorted(set(params) - set(body))
    assert head == ["head.bias", "head.weight"], (
        f"the parameters of the head must be head.weight and head.bias, and are {head}"
    )
    for support in (None, context):
        z = learner.features(body, x, context=support)
        shape = (5, params["head.weight"].shape[1])
        assert z.shape == shape, (
            f"features of 5 inputs must have shape {shape}, the columns of head.weight, and have "
            f"{tuple(z.shape)}"
        )
        expected = z @ params["head.weight"].T + params["head.bias"]
        text = "apply must be features @ head.weight.T + head.bias, and"
        found = learner.apply(params, x, context=support)
        expect_close(found, expected, text, rtol=1e-12, atol=1e-12)


def check_the_start_is_a_function_of_the_key_alone(case: ModelCase) -> None:
    """The same key, the same bits; another key, other weights; float32 rounds the same numbers."""
    learner = case.learner()
    state = torch.get_rng_state()
    params, other_params = learner.init(KEY), learner.init(fold_in(KEY, "other"))
    assert torch.equal(torch.get_rng_state(), state), (
        "init must draw from the key (metalearn.rng), and uses torch's global random number "
        "generator"
    )
    text = "init must return the same parameters for the same key, and another learner's init"
    expect_same(case.learner().init(KEY), params, text)
    weights = [n for n in params if n.endswith("weight") and params[n].dim() > 1]
    assert weights, f"the parameters must have a weight with two axes, and are {sorted(params)}"
    equal = [n for n in weights if torch.equal(params[n], other_params[n])]
    assert not equal, f"init must draw weights from the key, and {equal} are equal for two keys"
    float32_params = case.learner(torch.float32).init(KEY)
    for dtype, values in ((F64, params), (torch.float32, float32_params)):
        dtypes = {value.dtype for value in values.values()}
        assert dtypes == {dtype}, f"parameters must be {dtype} as the spec, and are {dtypes}"
    text = "parameters in float32 must be those in float64 up to rounding, and init"
    double = {name: value.double() for name, value in float32_params.items()}
    expect_close(double, params, text, rtol=1e-5, atol=1e-6)


def check_a_batch_of_parameters_gives_what_each_gives_alone(case: ModelCase) -> None:
    """torch.func.vmap over parameters, as over the adapted parameters of several tasks."""
    learner = case.learner()
    x, both = data(learner, 4), [learner.init(fold_in(KEY, n)) for n in range(2)]
    stacked = {name: torch.stack([params[name] for params in both]) for name in both[0]}
    together = torch.func.vmap(lambda params: learner.apply(params, x, context=x))(stacked)
    alone = torch.stack([learner.apply(params, x, context=x) for params in both])
    text = "vmap over two sets of parameters must give what each set does, and"
    expect_close(together, alone, text, rtol=1e-10, atol=1e-10)


def check_only_query_batch_lets_queries_see_each_other(case: ModelCase) -> None:
    """Other queries change a prediction only with query_batch.

    The support set changes it only with support and support_plus_one."""
    learner = case.learner()
    policy = learner.normalisation
    params, x, context = perturbed_params(learner), data(learner, 5), data(learner, 6, "context")
    outputs = learner.apply(params, x, context=context)
    changed = learner.apply(params, torch.cat([x[:2], 3 + 2 * x[2:]]), context=context)
    change = (outputs - changed)[:2].abs().max()
    transductive = policy == "query_batch"
    assert change > 1e-3 if transductive else change < 1e-12, (
        f"other queries must {'' if transductive else 'not '}change an output with the "
        f"normalisation {policy}, and change it by {change:.3g}"
    )
    context_change = (outputs - learner.apply(params, x, context=2 * context + 1)).abs().max()
    depends = policy in ("support", "support_plus_one")
    assert context_change > 1e-3 if depends else context_change == 0, (
        f"another context must {'' if depends else 'not '}change an output with the "
        f"normalisation {policy}, and changes it by {context_change:.3g}"
    )


MODEL_CHECKS: list[Check] = [
    value
    for name, value in list(globals().items())
    if name.startswith("check_") and value is not check_form
]


def check_model(
    component: type[ModelComponent] | ModelComponent,
    *,
    spec: EpisodeSpec | None = None,
    skip: Mapping[str, str] | None = None,
) -> None:
    """Run the contract suite of models, with every normalisation that the model supports.

    component: a class, built from its defaults, or an instance.
    spec: of the tasks, in float64; None: 3 classes of 6 numbers, or of images [1, 16, 16] if the
        model rejects vectors.
    skip: {name of a check: why it does not apply}.

    Raises AssertionError with every check that fails; TypeError if it is not a ModelComponent.

    >>> from metalearn.testing import check_model
    >>> check_model(ml.models.MLP(sizes=(4,)))  # raises if the contract is broken
    """
    kind = component if isinstance(component, type) else type(component)
    if not issubclass(kind, ModelComponent):
        raise TypeError(f"{kind.__name__} is not a subclass of metalearn.component.ModelComponent")
    instance = component() if isinstance(component, type) else component  # type: ignore[call-arg]
    spec = _default_spec(instance) if spec is None else spec
    for model in _norm_models(instance):
        name = f"{kind.__name__}({fields_set(model)})"
        build = partial(ModelCase, model, spec)
        run_checks(name, build, MODEL_CHECKS, _never_inapplicable, skip)


def _never_inapplicable(case: ModelCase, check: Check) -> str:
    del case, check
    return ""


def _default_spec(component: ModelComponent) -> EpisodeSpec:
    try:
        component.build(VECTOR)
    except (ConfigError, ValueError, RuntimeError):
        return IMAGE
    return VECTOR


def _norm_models(component: ModelComponent) -> list[ModelComponent]:
    field = type(component).model_fields.get("norm")
    norms: tuple[Any, ...] = () if field is None else get_args(field.annotation)
    options, kind = fields_set(component), type(component)
    return [kind(**{**options, "norm": p}) for p in POLICIES if p in norms] or [component]
