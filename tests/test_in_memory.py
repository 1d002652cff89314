"""Objects given in Python are known by what they compute."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.in_memory import hash_of, hashes_of
from metalearn.models.mlp import MLP
from metalearn.models.module import READ
from metalearn.types import EpisodeSpec

SPEC = EpisodeSpec("classification", 3, 2, 2, (5,), 3, 20)


class Scaled(nn.Module):
    def __init__(self, factor: Any = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x) * self.factor
        return out


@dataclass
class Options:
    factor: float


class Weighted:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.factor * (outputs - y).abs()

    def method(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self(outputs, y)


def changed(change: Callable[[nn.Sequential], Any]) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))
    with torch.no_grad():
        net[2].weight.copy_(net[0].weight)
    change(net)
    return net


def tie(net: nn.Sequential) -> None:
    net[2].weight = net[0].weight


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


PAIRS: dict[str, tuple[Any, Any]] = {
    "attribute": (Scaled(1.0), Scaled(100.0)),
    "tensor attribute": (Scaled(torch.ones(3)), Scaled(torch.zeros(3))),
    "frozen": (changed(lambda net: None), changed(lambda net: net[0].requires_grad_(False))),
    "tied": (changed(lambda net: None), changed(tie)),
    "hook": (
        changed(lambda net: None),
        changed(lambda net: net[3].register_forward_hook(lambda module, x, out: 2 * out)),
    ),
    "mode": (changed(lambda net: None), changed(lambda net: net[1].eval())),
    "option of a loss": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "default": tuple(lambda k=k: Scaled(k) for k in (1.0, 2.0)),  # type: ignore[misc]
    "partial": (partial(Scaled, 1.0), partial(Scaled, 2.0)),
    "instance": (Weighted(1.0), Weighted(2.0)),
    "method": (Weighted(1.0).method, Weighted(2.0).method),
    "closed-over object": (closure(Options(1.0)), closure(Options(2.0))),
    "closed-over array": (closure(np.ones(2)), closure(np.zeros(2))),
    "closed-over function": (closure(lambda: 1), closure(lambda: 2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_objects_that_compute_something_else_have_another_hash(name: str) -> None:
    first, second = PAIRS[name]
    assert hash_of(first) != hash_of(second)
    assert hash_of(first) == hash_of(copy.deepcopy(first)), "equal objects have one hash"


def test_modules_that_differ_in_an_attribute_are_different_models() -> None:
    x, key = torch.ones(2, 5), ml.fold_in(0)
    models = [ml.models.Module(Scaled(factor), keep=True) for factor in (1.0, 100.0)]
    first, second = (
        learner.apply(learner.init(key), x) for learner in (m.build(SPEC) for m in models)
    )
    torch.testing.assert_close(100 * first, second)


def test_a_learner_of_a_shipped_model_has_a_hash() -> None:
    """Its module has no memory behind its tensors."""
    one, same, other = (ml.models.MLP(sizes=(n,)).build(SPEC) for n in (4, 4, 6))
    assert hash_of(one) == hash_of(same) != hash_of(other)
    assert isinstance(ml.models.Module(one).build(SPEC), ml.Learner)


def test_weights_have_the_hash_of_earlier_versions() -> None:
    """Run directories hold it."""
    weights = {"weight": torch.arange(4.0), "number": torch.tensor(3)}
    assert hash_of(weights) == "7af406aa4b72676d29c95d111ab7ed94cba7e7fc13ce36ddcb61e446ef721424"


def test_what_is_changed_after_it_was_given_is_refused() -> None:
    """Another mode would be another policy of normalisation under the same hash."""
    net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    model = ml.models.Module(net, head=None)
    assert model.build(SPEC).normalisation == "query_batch"
    net.eval()
    assert model.build(SPEC).normalisation == "query_batch", "what was made stays"
    with pytest.raises(ml.ConfigError, match="model: was changed after it was passed"):
        model.build(dataclasses.replace(SPEC, shots=7))
    net.train()
    assert model.build(dataclasses.replace(SPEC, shots=7)).normalisation == "query_batch"


@pytest.mark.parametrize(("outputs", "calls"), [(3, 1), (7, 2)])
def test_training_test_and_new_tasks_share_one_learner(
    outputs: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of a large module take seconds; another number of outputs needs a new head."""
    made = list[str]()

    def counted(net: Any, spec: EpisodeSpec, **options: Any) -> Any:
        made.append(options["head"])
        return ml.models.from_module(net, spec, **options)

    monkeypatch.setattr("metalearn.models.module.from_module", counted)
    model = ml.models.Module(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, outputs)))
    test = dataclasses.replace(SPEC, split="test", num_classes=5, shots=1, queries=9)
    learners = [model.build(spec) for spec in (SPEC, test, dataclasses.replace(SPEC, ways=2))]
    assert made == ["auto", "new"][:calls] and all(one is learners[0] for one in learners)
    other = model.build(dataclasses.replace(SPEC, dtype=torch.float64))
    assert other is not learners[0] and len(made) == 2 * calls


class Watched(EpisodeSpec):
    """Collects the fields that are read."""

    seen: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.seen.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("init", ["module", "orthogonal"])
@pytest.mark.parametrize("head", ["auto", "new", None])
def test_learners_are_shared_by_all_that_is_read_of_a_spec(head: str | None, init: Any) -> None:
    spec = Watched(**{field.name: getattr(SPEC, field.name) for field in dataclasses.fields(SPEC)})
    Watched.seen.clear()
    learner = ml.models.from_module(nn.Linear(5, 3), spec, head=head, init=init)
    learner.module(learner.init(ml.fold_in(0)))
    fields = {field.name for field in dataclasses.fields(SPEC)}
    assert {"x_shape"} <= Watched.seen & fields <= set(READ)


def test_rows_may_be_changed_after_they_were_given() -> None:
    x, y = np.arange(60.0).reshape(20, 3), np.repeat(np.arange(4), 5)
    task = ml.tasks.Arrays(x, y, ways=2, shots=1, queries=1, fractions=(1, 0, 0))
    before = task.build().sample(ml.fold_in(0), 2)
    x[:] = 0
    assert torch.equal(task.build().sample(ml.fold_in(0), 2).support.x, before.support.x)


class OfPackage(MLP):
    """A class of the user with a base of this package."""


@dataclass
class Holder:
    value: Any


LIBRARY: dict[str, Any] = {
    "learner of a shipped model": ml.models.MLP(sizes=(4,)).build(SPEC),
    "object of the package": closure(SPEC),
    "base of the package": OfPackage,
    "function of torch": Holder(nn.functional.softmax),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_a_comment_in_a_library_changes_no_hash(name: str, monkeypatch: Any) -> None:
    value, get_source = LIBRARY[name], inspect.getsource
    before, earlier = hashes_of(value)
    assert earlier not in (None, before)

    def commented(one: Any) -> str:
        is_own = one.__module__.split(".")[0] in ("metalearn", "torch")
        return get_source(one) + "# a comment" * is_own

    monkeypatch.setattr(inspect, "getsource", commented)
    assert hash_of(value) == before
    assert hashes_of(value)[1] != earlier


def test_a_comment_of_the_user_changes_the_hash(monkeypatch: Any) -> None:
    value, get_source = Scaled(1.0), inspect.getsource
    before, earlier = hashes_of(value)
    assert earlier is None
    monkeypatch.setattr(inspect, "getsource", lambda one: get_source(one) + "# a comment")
    assert hash_of(value) != before


def test_runs_of_earlier_versions_find_the_object_by_their_hash() -> None:
    net = ml.models.MLP(sizes=(4,)).build(SPEC)
    _, earlier = hashes_of(net)
    stored = {"name": "torch_module", "object": "Learner", "sha256": earlier}
    with pytest.raises(ml.ConfigError, match="pass the same one again"):
        ml.models.Module.model_validate(stored).build(SPEC)
    model = ml.models.Module(net)
    assert ml.models.Module.model_validate(stored).build(SPEC) is net
    assert model.sha256 != earlier
