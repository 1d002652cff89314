"""The networks and answers of adapted tasks, taken elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clusters import Clusters
from torch import Tensor, nn

from metalearn.algorithms import (
    ANIL,
    BOIL,
    CAVIA,
    MAML,
    R2D2,
    MatchingNet,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from metalearn.component import MethodComponent
from metalearn.errors import ConfigError
from metalearn.learned_optimizers import LearnToOptimize
from metalearn.models import MLP, Conv4, from_module
from metalearn.rng import fold_in, integers, normal
from metalearn.run.trained.adapted import AdaptedTask, adapt_task
from metalearn.transfer import BaselinePlusPlus, FineTune, LinearProbe, NearestCentroid, Scratch
from metalearn.tree import take
from metalearn.types import EpisodeSpec, Learner, Method

F64 = torch.float64
KEY = fold_in(4, "export")


def adapted(
    component: MethodComponent, make: Any = None, spec: EpisodeSpec | None = None, steps: int = 2
) -> AdaptedTask:
    """A task of the method's, learned from an episode or from noise of the spec's shape."""
    tasks = Clusters("train", 24)
    spec = tasks.spec if spec is None else spec

    def build(spec: EpisodeSpec) -> tuple[Learner, Method]:
        learner = make(spec) if make else MLP(sizes=(8,), activation="tanh").build(spec)
        return learner, component.build(learner, spec)

    meta = build(spec)[1].init(KEY).meta
    if spec is tasks.spec:
        support = take(tasks.sample(KEY, 1).support, 0)
        return adapt_task(build, meta, spec, support.x, support.y, steps)
    x = normal(fold_in(KEY, "x"), (6, *spec.x_shape), spec.dtype)
    return adapt_task(build, meta, spec, x, torch.arange(6) % 3, steps)


def queries(task: AdaptedTask, count: int = 5) -> Tensor:
    spec = task.method.spec
    return normal(fold_in(KEY, "q"), (count, *spec.x_shape), spec.dtype)


ADAPTS = [MAML, ANIL, BOIL, MetaSGD, Reptile, ProtoMAML, MetaCurvature, CAVIA]
ADAPTS += [FineTune, Scratch, LinearProbe, LearnToOptimize]
PATTERNS = [kind(adapts=("head",)) for kind in ADAPTS if "adapts" in kind.model_fields]


@pytest.mark.parametrize(
    "component", [*(kind() for kind in ADAPTS), *PATTERNS], ids=lambda one: one.name
)
def test_the_module_of_every_method_that_adapts_weights(component: Any) -> None:
    task = adapted(component)
    module, x = task.module(), queries(task)
    torch.testing.assert_close(module(x).detach(), task.outputs(x))
    assert isinstance(module, nn.Module) and "head.weight" in module.state_dict()


@pytest.mark.parametrize(
    "component", [LinearProbe(normalise=True), BaselinePlusPlus(), R2D2(), MatchingNet()]
)
def test_a_network_that_answers_otherwise_than_its_method_is_refused(component: Any) -> None:
    task = adapted(component)
    with pytest.raises(ConfigError, match=r"module: .*use predict or export"):
        task.module()


class Residual(nn.Module):
    """A network of somebody, whose normalisation reads the batch or running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.first(x)).relu())


def test_ones_own_network_comes_back_as_itself() -> None:
    def make(spec: EpisodeSpec) -> Learner:
        return from_module(Residual().eval(), spec)

    torch.manual_seed(0)
    task = adapted(MAML(), make)
    module, x = task.module(), queries(task)
    assert type(module) is Residual and not module.training
    torch.testing.assert_close(module(x).detach(), task.outputs(x))
    twin = Residual().double().eval()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(x).detach(), task.outputs(x))


def test_statistics_of_the_batch_do_not_depend_on_the_mode_of_the_module() -> None:
    task = adapted(MAML(), lambda spec: from_module(Residual, spec))
    assert task.method.traits.normalisation == "query_batch"
    module, x = task.module().eval(), queries(task)
    torch.testing.assert_close(module(x).detach(), task.outputs(x))


# programs


def loaded(path: Path, x: Tensor) -> Tensor:
    """The outputs of a written program, and that it calls torch's operators alone."""
    if path.suffix == ".pt":
        return torch.jit.load(path)(x)  # type: ignore[no-untyped-call,no-any-return]
    program = torch.export.load(path)
    assert "metalearn" not in str(program.graph)
    out: Tensor = program.module()(x)
    return out


@pytest.mark.parametrize("ending", [".pt2", ".pt"])
@pytest.mark.parametrize(
    "component",
    [MAML(), ProtoNet(), FineTune(), BaselinePlusPlus(), NearestCentroid(), LinearProbe()],
    ids=lambda component: component.name,
)
def test_a_program_answers_any_number_of_inputs(
    component: Any, ending: str, tmp_path: Path
) -> None:
    task = adapted(component)
    path = task.export(tmp_path / f"task{ending}")
    for count in (1, 2, 7):
        x = queries(task, count)
        torch.testing.assert_close(loaded(path, x), task.outputs(x))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("component", [MAML(), ProtoNet()], ids=lambda one: one.name)
def test_an_onnx_program_gives_the_same_answers(component: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    task = adapted(component)
    program = onnx.load(task.export(tmp_path / "task.onnx"))
    onnx.checker.check_model(program)
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(program)
    for count in (1, 2, 7):
        x = queries(task, count)
        (found,) = evaluator.run(None, {program.graph.input[0].name: x.numpy()})
        torch.testing.assert_close(torch.as_tensor(found), task.outputs(x))


@pytest.mark.parametrize("norm", ["support", "query_batch", "running"])
@pytest.mark.parametrize("ending", [".pt2", ".pt"])
def test_convolutions_leave_with_torchs_operators(norm: str, ending: str, tmp_path: Path) -> None:
    spec = EpisodeSpec("classification", 3, 2, 2, (1, 28, 28), 3, 9)
    task = adapted(MAML(), lambda spec: Conv4(filters=4, norm=norm).build(spec), spec, steps=1)
    path = task.export(tmp_path / f"conv4{ending}")
    x = queries(task, 4)
    torch.testing.assert_close(loaded(path, x), task.outputs(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    task = adapted(MAML())
    with pytest.raises(ConfigError, match=r"must end with .pt2 \(torch.export\)"):
        task.export(tmp_path / "task.bin")
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="onnxscript: pip install"):
            task.export(tmp_path / "task.onnx")
    assert not list(tmp_path.iterdir())


# targets of any shape


class Dense(nn.Module):
    """[B, 6] -> [B, 6, C]: as many labels, or values, as inputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 9), nn.Linear(9, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x.unsqueeze(-1)).tanh())
        return out


def dense(kind: str, outputs: int) -> tuple[Any, EpisodeSpec, Any]:
    spec = EpisodeSpec(kind, 1, 5, 5, (6,), outputs, 0, dtype=F64)  # type: ignore[arg-type]
    component = MAML(inner_lr=0.5)

    def build(spec: EpisodeSpec) -> tuple[Learner, Method]:
        learner = from_module(lambda: Dense(outputs), spec)
        return learner, component.build(learner, spec)

    return build, spec, build(spec)[1].init(KEY).meta


def test_a_task_has_labels_for_every_place_of_an_input() -> None:
    build, spec, meta = dense("classification", 3)
    x = normal(KEY, (5, 6), F64)
    y = integers(fold_in(KEY, "y"), (5, 6), 3)
    names = torch.tensor([7, 20, 40])[y].numpy()
    task = adapt_task(build, meta, spec, x, names, 3)
    found = task.predict(x.numpy())
    assert found.shape == (5, 6) and set(found.flat) <= {7, 20, 40}
    assert task.predict_proba(x).shape == (5, 6, 3)
    with pytest.raises(ConfigError, match=r"y: must have shape \[B, 6\]"):
        adapt_task(build, meta, spec, x, [7, 7, 20, 40, 7], 3)


def test_a_task_has_values_of_any_shape() -> None:
    build, spec, meta = dense("regression", 2)
    x, y = normal(KEY, (5, 6), F64), normal(fold_in(KEY, "y"), (5, 6, 2), F64)
    task = adapt_task(build, meta, spec, x, y, 3)
    assert task.predict(x).shape == (5, 6, 2)
    ends = [adapt_task(build, meta, spec, x, y, steps).predict(x) for steps in (0, 9)]
    assert (ends[1] - y).square().mean() < (ends[0] - y).square().mean()
    with pytest.raises(ConfigError, match=r"must have shape \[B, 6, 2\] \(got \[5, 6\]\)"):
        adapt_task(build, meta, spec, x, y[..., 0], 3)
