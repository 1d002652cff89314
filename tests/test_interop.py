"""`run.engine`: learn2learn and higher against the native gradients; what is refused; what is
imported when."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from commandline import sinusoid
from oracles import gap, learn2learn
from torch import Tensor

from metalearn import interop
from metalearn.algorithms import ALGORITHMS, ANIL, BOIL, MAML, MetaSGD
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.config.sections import Run
from metalearn.errors import ConfigError
from metalearn.executors.executor import make_step
from metalearn.inner.rules import SGD
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in, normal, permutation
from metalearn.run.run import run_one
from metalearn.tasks import Sinusoid
from metalearn.tree import named_leaves, take, tree_map
from metalearn.types import Batch, Episode, EpisodeSpec, Learner, Method

F64 = torch.float64
EQUAL = 1e-10  # relative, over all leaves together; seen: at most 5e-16
FAR = 0.2  # what first order and second order must differ by; seen: 0.84 and more
SOURCE = Sinusoid(shots=5, queries=7, amplitude=(0.5, 2.0)).build(dtype=F64)
LEARNER = MLP(sizes=(16, 12)).build(SOURCE.spec)
IMAGES = EpisodeSpec("classification", 3, 2, 2, (1, 16, 16), 3, 20, dtype=F64)
METHODS = {
    "maml": MAML(inner_steps=1, inner_lr=0.05),
    "maml 3 steps": MAML(inner_steps=3, inner_lr=0.05),
    "fomaml 3 steps": MAML(inner_steps=3, inner_lr=0.05, first_order=True),
    "anil": ANIL(inner_steps=3, inner_lr=0.05),
    "boil": BOIL(inner_steps=2, inner_lr=0.05),
    "meta_sgd": MetaSGD(inner_steps=2, rate_range=(0.02, 0.06)),
}


def here(engine: str) -> None:
    """Skip where the package is missing."""
    try:
        getattr(interop, engine)()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(params=sorted(interop.INNER_LOOPS))
def engine(request: pytest.FixtureRequest) -> str:
    here(request.param)
    return str(request.param)


def pair(engine: str, component: Any, learner: Learner, spec: EpisodeSpec) -> tuple[Method, Method]:
    native = component.build(learner, spec)
    return native, interop.with_engine(engine, component, learner, native)


def same(a: Any, b: Any) -> float:
    return gap(named_leaves(a), named_leaves(b))


def images() -> Episode:
    """One task of three classes around bright and dark."""

    def batch(part: str) -> Batch:
        key = fold_in(4, part)
        y = permutation(key, 6) % 3
        return Batch(normal(key, (6, *IMAGES.x_shape), F64) + y.view(-1, 1, 1, 1), y)

    return Episode(batch("support"), batch("query"), {"key": fold_in(4)})


# engines


def gradients(
    engine: str, component: Any, learner: Learner, spec: EpisodeSpec, episode: Episode
) -> float:
    """The distance of the engine's gradient from the native one; metrics and structure must be the
    same."""
    native, other = pair(engine, component, learner, spec)
    meta = native.init(fold_in(0, "init")).meta
    # A start away from zero biases, unit gains and one common rate.
    meta = tree_map(
        lambda leaf: leaf + 0.01 * normal(fold_in(2, leaf.numel()), leaf.shape, F64), meta
    )
    before = tree_map(torch.clone, meta)
    (ours, found), (theirs, expected) = (
        native.task_grad(meta, episode),
        other.task_grad(meta, episode),
    )  # type: ignore[misc]
    assert list(named_leaves(ours)) == list(named_leaves(theirs))
    assert not any(
        leaf.requires_grad for leaf in [*named_leaves(theirs).values(), *expected.values()]
    )
    assert all(
        torch.equal(leaf, named_leaves(before)[name]) for name, leaf in named_leaves(meta).items()
    )
    torch.testing.assert_close(found, expected, rtol=EQUAL, atol=0)
    return same(theirs, ours)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_a_perceptron_are_the_native_ones(engine: str, name: str) -> None:
    episode = take(SOURCE.sample(fold_in(1, "episodes"), 1), 0)
    component = METHODS[name]
    assert gradients(engine, component, LEARNER, SOURCE.spec, episode) < EQUAL
    if isinstance(component, MAML):
        native = component.model_copy(update={"first_order": not component.first_order}).build(
            LEARNER, SOURCE.spec
        )
        other = interop.with_engine(
            engine, component, LEARNER, component.build(LEARNER, SOURCE.spec)
        )
        meta = native.init(fold_in(0, "init")).meta
        assert same(other.task_grad(meta, episode)[0], native.task_grad(meta, episode)[0]) > FAR  # type: ignore[misc]


@pytest.mark.parametrize("norm", ["none", "query_batch", "support", "support_plus_one", "running"])
def test_gradients_of_convolutions_are_the_native_ones_under_every_policy(
    engine: str, norm: Any
) -> None:
    """Context reaches the queries, and running statistics move as they do natively."""
    learner = Conv4(filters=4, downsample="stride", norm=norm).build(IMAGES)
    assert gradients(engine, MAML(inner_steps=2, inner_lr=0.1), learner, IMAGES, images()) < EQUAL


@pytest.mark.parametrize("name", ["anil", "boil", "meta_sgd"])
def test_running_averages_move_as_natively_whatever_the_inner_loop_moves(
    engine: str, name: str
) -> None:
    learner = Conv4(filters=4, downsample="stride", norm="running").build(IMAGES)
    assert gradients(engine, METHODS[name], learner, IMAGES, images()) < EQUAL


@pytest.mark.parametrize("name", [name for name in METHODS if name != "maml"])
def test_gradients_of_pooled_convolutions_are_the_native_ones(engine: str, name: str) -> None:
    learner = Conv4(filters=4, downsample="pool").build(IMAGES)
    assert gradients(engine, METHODS[name], learner, IMAGES, images()) < EQUAL


def test_a_parameter_without_influence_has_gradient_zero(engine: str) -> None:
    def init(key: Tensor) -> dict[str, Tensor]:
        return {"idle": torch.ones(2, dtype=F64), **LEARNER.init(key)}

    learner = LEARNER._replace(
        init=init, apply=lambda params, x, context=None: LEARNER.apply(params, x)
    )
    episode = take(SOURCE.sample(fold_in(1, "episodes"), 1), 0)
    native, other = pair(engine, METHODS["maml"], learner, SOURCE.spec)
    meta = native.init(fold_in(0, "init")).meta
    ours, theirs = native.task_grad(meta, episode)[0], other.task_grad(meta, episode)[0]  # type: ignore[misc]
    assert (theirs["idle"] == 0).all() and same(theirs, ours) < EQUAL


def test_steps_alone_and_under_the_loop_are_the_native_ones(engine: str) -> None:
    component = MAML(inner_steps=2, inner_lr=0.05, outer=SGD(lr=0.1))
    native, other = pair(engine, component, LEARNER, SOURCE.spec)
    state = native.init(fold_in(0, "init"))
    episodes = SOURCE.sample(fold_in(1, "train"), 3)
    expected, metrics = native.step(state, episodes)  # type: ignore[misc]
    for step in (other.step, make_step(other, "loop")):
        found, step_metrics = step(state, episodes)  # type: ignore[misc]
        assert same(found, expected) < EQUAL and same(step_metrics, metrics) < EQUAL
    assert other.learn is native.learn and other.traits == native.traits


def test_a_training_run_gives_the_same_numbers(engine: str, tmp_path: Path) -> None:
    """20 steps of Adam in float64: metrics, validation and test within 1e-10 (seen: 3e-16)."""
    rows = {}
    for name in ("native", engine):
        data = sinusoid(
            run={"engine": name, "executor": "auto", "dtype": "float64", "log_every": 1}
        )
        experiment = parse(data).experiments[0]
        result = run_one(experiment, tmp_path / name)
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        rows[name] = [
            *lines,
            {"kind": "test", **{f"loss{i}": v for i, v in enumerate(result["test"]["loss"])}},
        ]
    assert f"engine: {engine}\n  executor: loop" in (tmp_path / engine / "config.yaml").read_text()
    assert len(rows[engine]) == len(rows["native"]) >= 20
    for found, expected in zip(rows[engine], rows["native"], strict=True):
        numbers = {name: value for name, value in expected.items() if not isinstance(value, str)}
        assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-10)
        assert found.keys() == expected.keys() and found["kind"] == expected["kind"]


# refusals


def refused(**run: Any) -> list[tuple[str, str]]:
    """The problems of a sinusoid experiment with these run options; `method` apart."""
    method = run.pop("method", {})
    with pytest.raises(ConfigError) as caught:
        build(parse(sinusoid(method=method, run={"executor": "auto", **run})).experiments[0])
    return list(caught.value.problems)


@pytest.mark.parametrize("name", ["reptile", "fine_tune", "scratch"])
def test_methods_without_a_counterpart_are_refused_with_those_that_have_one(
    engine: str, name: str
) -> None:
    found = refused(engine=engine, method={"name": name, "inner_lr": 0.1})
    assert [place for place, _ in found] == ["run.engine"]
    assert f"{engine} has no counterpart of {name}: use run.engine=native" in found[0][1]


@pytest.mark.parametrize("executor", ["vmap", "chunk", "compiled", "compiled_loop"])
def test_other_executors_are_refused_and_auto_is_the_loop(executor: str) -> None:
    for name in interop.INNER_LOOPS:
        found = refused(engine=name, executor=executor)
        assert [place for place, _ in found] == ["run"]
        assert executor in found[0][1]
        assert "loop" in found[0][1]
        assert Run(engine=name).executor == Run(engine=name, executor="loop").executor == "loop"
    assert Run().executor == "auto"
    assert "higher" in refused(engine="torchopt")[0][1]
    assert set(get_args(Run.model_fields["engine"].annotation)) == {"native", *interop.INNER_LOOPS}


def test_an_option_that_the_engines_do_not_know_is_refused(engine: str) -> None:
    class Clipped(MAML):
        """MAML with one more option."""

        clip: float = 0.0

    native = MAML().build(LEARNER, SOURCE.spec)
    interop.with_engine(engine, Clipped(), LEARNER, native)
    with pytest.raises(ConfigError, match=f"clip: is not supported by {engine}"):
        interop.with_engine(engine, Clipped(clip=1.0), LEARNER, native)
    assert interop.with_engine("native", Clipped(clip=1.0), LEARNER, native) is native
    trained = {name for name, kind in ALGORITHMS.items() if kind.engine_trains is not None}
    assert trained == {component.name for component in METHODS.values()}


@pytest.mark.parametrize("name", sorted(interop.INNER_LOOPS))
def test_a_missing_package_is_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get = getattr(interop, name).__wrapped__
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda asked, *rest: None if asked == name else find(asked, *rest),
    )
    monkeypatch.setitem(interop.PACKAGES, name, get)
    found = refused(engine=name)
    assert [place for place, _ in found] == ["run.engine"]
    assert f"{name} is not installed: run `make setup`" in found[0][1]


def test_a_learn2learn_that_does_not_import_is_a_sentence_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn2learn()
    for module in [module for module in sys.modules if module.partition(".")[0] == "learn2learn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ConfigError, match=r"cannot be imported .*tqdm"):
        interop.learn2learn.__wrapped__()
    assert not [module for module in sys.modules if module.partition(".")[0] == "learn2learn"]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    program = (
        "import sys, metalearn; metalearn.interop; import metalearn.cli.commands\nprint([name for "
        "name in ('learn2learn', 'higher', 'gym', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_learn2learn_has_its_torch_parts_and_says_what_the_others_need() -> None:
    package = learn2learn()
    assert package.algorithms.MAML and package.data.Taskset and package.clone_module
    assert importlib.util.find_spec("learn2learn") is package.__spec__
    assert not hasattr(package, "no_such_part")
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ModuleNotFoundError, match="torchvision"):
            _ = package.vision
