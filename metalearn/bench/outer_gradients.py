"""Table of estimators of the outer gradient of an initialization against the exact one.

    python -m metalearn.bench.outer_gradients --out experiments/results/outer_gradients.json

The inner problem is iMAML's, argmin of L_support(phi) + lambda/2 |phi - theta|^2, solved by `STEPS`
steps of descent, with a lambda that makes it convex enough to be solved. Exact is back-propagation
through all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import rng
from metalearn.algorithms.gradient.imaml import START, penalised
from metalearn.algorithms.gradient.implicit import (
    Matrix,
    conjugate_gradients,
    dot,
    identity,
    neumann,
    one_step,
)
from metalearn.bench.engines.engine import Engine
from metalearn.bench.measure import Turns, in_turns, peak_bytes, quartiles
from metalearn.component import ModelComponent
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.rules import sgd
from metalearn.models import MLP, Conv4
from metalearn.storage.environment import git_commit
from metalearn.storage.files import write_json
from metalearn.tasks import Glyphs, Sinusoid
from metalearn.tree import add, scale, sub, take
from metalearn.types import Episode, EpisodeSpec, Learner, Params, TaskSource

STEPS = 100  # of the inner problem
STEP = 0.2  # its step size times lambda: that in units of A = I + H / lambda
EXACT = "exact: back-propagation through all steps"
Estimate = Callable[[Matrix, Params], Params]
# name -> (products with the Hessian, estimator)
ESTIMATORS: dict[str, tuple[int, Estimate]] = {
    **{
        f"conjugate gradients, {n} steps": (n, partial(conjugate_gradients, steps=n))
        for n in (1, 5, 20)
    },
    **{f"Neumann series, {n} terms": (n, partial(neumann, steps=n, rate=STEP)) for n in (1, 5, 20)},
    "one step (T1-T2)": (0, partial(one_step, rate=STEP)),
    "identity (SAMA)": (0, identity),
}


class Problem(NamedTuple):
    """One task and an initialization: everything that a gradient depends on."""

    learner: Learner
    spec: EpisodeSpec
    episode: Episode  # of ONE task
    theta: Params
    strength: float  # lambda


def problems(dtype: torch.dtype) -> dict[str, Problem]:
    """Return a sinusoid with a small MLP, and letters with a small convolutional network."""
    waves = Sinusoid(shots=10, queries=10).build(dtype=dtype)
    letters = Glyphs(ways=5, shots=1, queries=5).build(dtype=dtype)
    learners: dict[str, tuple[TaskSource, ModelComponent, float]] = {
        "sinusoid, 2 x 40 units": (waves, MLP(sizes=(40, 40), activation="tanh"), 10.0),
        "glyphs 5-way 1-shot, Conv4-16": (letters, Conv4(filters=16, norm="none"), 5.0),
    }
    result = {}
    for name, (source, model, strength) in learners.items():
        learner = model.build(source.spec)
        theta = learner.init(rng.fold_in(0, "theta"))
        episode = take(source.sample(rng.fold_in(0, "episode"), 1), 0)
        result[name] = Problem(learner, source.spec, episode, theta, strength)
    return result


def solve(problem: Problem, theta: Params) -> Params:
    """Return phi after all inner steps."""
    loss = penalised(support_loss(problem.learner, problem.spec), problem.strength)
    start = {f"{START}{name}": x for name, x in theta.items()}
    options: Any = {"keep": (STEPS,), "fixed": start}
    return adapt(
        loss, theta, sgd(STEP / problem.strength), problem.episode.support, STEPS, **options
    ).points[0]


def exact(problem: Problem) -> Params:
    """Return the gradient of the query loss through the inner loop."""

    def outer(theta: Params) -> Tensor:
        return _query_loss(problem, solve(problem, theta))

    gradient: Params = torch.func.grad(outer)(problem.theta)
    return gradient


def estimate_gradient(problem: Problem, estimate: Estimate) -> Params:
    """Return the gradient of an estimator, at the end of the inner loop."""
    with torch.no_grad():
        phi = solve(problem, problem.theta)
    loss = support_loss(problem.learner, problem.spec)
    b = torch.func.grad(lambda params: _query_loss(problem, params))(phi)
    inner = torch.func.grad(lambda params: loss(params, problem.episode.support, 0))
    products = torch.func.vjp(inner, phi)[1]
    return estimate(lambda x: add(x, scale(products(x)[0], 1 / problem.strength)), b)


def measure_estimators(turns: Turns) -> dict[str, Any]:
    """Return the table: errors in float64, times and memory in float32."""
    precise, fast = problems(torch.float64), problems(torch.float32)
    rows = [row for name in precise for row in _rows(name, precise[name], fast[name], turns)]
    strengths = " and ".join(f"{problem.strength:g}" for problem in precise.values())
    note = (
        f"{STEPS} inner steps of {STEP} / lambda, lambda {strengths}; one task, a random start. "
        f"Errors in float64: relative, and 1 - cosine of the angle to the exact gradient, which "
        f"alone counts for a rule such as Adam. Times (median) and memory (peak) in float32 on one "
        f"thread, inner loop included. One step and identity have the same direction."
    )
    columns = ["task", "estimator", "products", "error", "1 - cosine", "ms", "MiB"]
    table = {"schema": 1, "kind": "table", "command": "make outer-gradients", "columns": columns}
    return {**table, "rows": rows, "note": note, "commit": git_commit()}


def _rows(name: str, precise: Problem, fast: Problem, turns: Turns) -> list[list[str]]:
    truth, engines = exact(precise), {EXACT: Engine(lambda: _call(exact, fast), None)}
    for label, (_, estimate) in ESTIMATORS.items():
        engines[label] = Engine(partial(_call, estimate_gradient, fast, estimate), None)
    peaks = {label: peak_bytes(engine) for label, engine in engines.items()}
    seconds = in_turns(engines, turns)
    rows = []
    for label in engines:
        products, gradient = "", truth
        if label in ESTIMATORS:
            count, estimate = ESTIMATORS[label]
            products, gradient = str(count), estimate_gradient(precise, estimate)
        peak = peaks[label]
        memory = "not measured" if peak is None else f"{peak / 2**20:.1f}"
        time = f"{1e3 * quartiles(seconds[label])[1]:.1f}"
        rows.append([name, label, products, *_errors(gradient, truth), time, memory])
    return rows


def _call(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


def _errors(gradient: Params, truth: Params) -> tuple[str, str]:
    gap, size = sub(gradient, truth), dot(truth, truth).sqrt()
    error = float(dot(gap, gap).sqrt() / size)
    cosine = float(dot(gradient, truth) / (dot(gradient, gradient).sqrt() * size))
    return f"{error:.2g}", f"{max(1 - cosine, 0.0):.2g}"


def _query_loss(problem: Problem, phi: Params) -> Tensor:
    return support_loss(problem.learner, problem.spec)(phi, problem.episode.query, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = measure_estimators(Turns(arguments.repeats, 120.0))
    write_json(arguments.out, table)
    for row in table["rows"]:
        print("  ".join(row))


if __name__ == "__main__":
    main()
