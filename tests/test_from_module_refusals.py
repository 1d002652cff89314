"""What `from_module` refuses, in a sentence, and what it reports of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import IMAGE, TOKENS, VECTOR, numbers

from metalearn.algorithms import MAML
from metalearn.errors import ConfigError
from metalearn.models import Norm, from_module
from metalearn.rng import fold_in
from metalearn.types import Batch, Episode

KEY = fold_in(17, "refused")


class Loud(nn.Module):
    """Does one thing that a pure function cannot."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.scale, self.head, self.way = nn.Parameter(torch.ones(8)), nn.Linear(8, 3), way
        self.register_buffer("calls", torch.zeros(()))
        self.alias = [self.scale]
        self.own = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "in place":
            x.mul_(2)
        x = x * (self.alias[0] if self.way == "alias" else self.scale)
        if self.way == "noise":
            x = x + torch.empty_like(x).normal_()
        if self.way == "training noise" and self.training:
            x = x + torch.empty_like(x).cauchy_()
        if self.way == "buffer" and self.training:
            self.calls += 1
        if self.way == "mode" and self.training:
            x = 2 * x
        if self.way == "state":
            self.own += 1
            x = x + self.own
        if self.way == "data" and x.sum() > 0:
            x = x + 1
        if self.way == "statistics":
            x = x - x.mean(0)
        out = self.head(x)
        return (out, x) if self.way == "tuple" else out


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("noise", "forward calls normal_, also in evaluation mode"),
        ("training noise", r"forward calls cauchy_.*dropout, or pass .* net\.eval\(\)"),
        ("buffer", r"calls: is changed by forward.* in training mode: pass the module"),
        ("in place", "changes x in place"),
        ("mode", "computes different results in training and evaluation mode"),
        ("state", "own: changes with every call of forward"),
        ("alias", "reads a copy of a parameter under another name"),
        ("data", r"cannot be batched over tasks by torch\.func\.vmap"),
        ("tuple", "forward returns a tuple instead of a tensor: set output to one of 0, 1"),
    ],
)
def test_what_is_no_pure_function_is_refused_in_a_sentence(way: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_module(Loud(way), VECTOR)
    if way in ("training noise", "buffer", "mode"):
        assert from_module(Loud(way).eval(), VECTOR).outputs == 3


def test_statistics_of_the_batch_in_forward_are_reported() -> None:
    assert from_module(Loud("statistics"), VECTOR).normalisation == "query_batch"
    assert from_module(Loud(), VECTOR).normalisation == "none"


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        (nn.Linear(7, 3), {}, r"forward fails on x \[4, 8\]"),
        (nn.Linear(8, 3, dtype=torch.cfloat), {}, "weight: is complex: use a real parameter"),
        (nn.Linear(8, 3, device="meta"), {}, "weight: is on the meta device"),
        (lambda: 3, {}, r"must return a torch.nn.Module \(got a int"),
        (
            torch.jit.trace(nn.Linear(8, 3), torch.zeros(2, 8)),
            {},
            "is compiled: pass the original module",
        ),
        (nn.Sequential(nn.Embedding(9, 3, max_norm=1.0), nn.Flatten()), {}, "0: has max_norm"),
        (nn.DataParallel(nn.Linear(8, 3)), {}, "DataParallel: splits a batch across devices"),
        (nn.Linear(8, 3), {"policy": "running"}, "needs a batch normalisation layer"),
        (
            nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)),
            {"policy": "frozen"},
            "0: BatchNorm1d has no running statistics, which frozen needs",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3)),
            {"policy": "running"},
            "momentum=None, which cannot be averaged over tasks",
        ),
        (nn.Sequential(nn.SyncBatchNorm(8), nn.Linear(8, 3)), {}, "SyncBatchNorm needs a process"),
        (
            nn.Sequential(Norm(8, "support"), nn.Linear(8, 3)),
            {"policy": "running"},
            "instead of running",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(8), Norm(8, "support"), nn.Linear(8, 3)),
            {},
            "its layers have query_batch, support: one of them must be all",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_in_a_sentence(net: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_module(net, VECTOR, **options)


def test_a_norm_that_normalises_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="omit the layer Norm"):
        Norm(8, "none")


def test_a_function_that_makes_another_network_each_time_is_refused() -> None:
    widths = iter((4, 4, 5, 5, 5, 5, 5))

    def make() -> nn.Module:
        width = next(widths)
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 3))

    learner = from_module(make, VECTOR)
    with pytest.raises(ConfigError, match=r"has shape \[5, 8\] for one key and \[4, 8\]"):
        learner.init(KEY)


def test_a_parameter_without_a_known_start_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="no known initialization for a parameter of Loud: pass init="
    ):
        from_module(Loud(), VECTOR, init="uniform").init(KEY)


def test_a_hook_of_the_head_is_kept() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3)).double()
    net[1].register_forward_hook(lambda layer, args, out: 2 * out)
    learner = from_module(net, VECTOR)
    x = torch.ones(4, 8, dtype=torch.float64)
    assert learner.readout == "module"
    torch.testing.assert_close(learner.apply(learner.init(KEY), x), net(x).detach())


def test_leaky_slopes_drawn_in_training_are_refused_and_fixed_ones_taken() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.RReLU(), nn.Linear(6, 3))
    with pytest.raises(ConfigError, match="forward calls rrelu_with_noise, which uses"):
        from_module(net, VECTOR)


def test_a_hook_on_a_gradient_is_refused() -> None:
    net = nn.Linear(8, 3)
    net.weight.register_hook(lambda grad: 0 * grad)
    with pytest.raises(ConfigError, match="weight: has a hook on its gradient"):
        from_module(net, VECTOR)


class Hidden(nn.Module):
    """Holds a layer and a tensor that torch does not find, trainable or constant."""

    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.layers = [nn.Linear(8, 8).double().requires_grad_(trainable)]
        self.tables = {"scale": torch.ones(8, requires_grad=trainable)}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers[0](x) * self.tables["scale"])
        return out


def test_trainable_tensors_that_are_no_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers: contains trainable .*ModuleList") as caught:
        from_module(Hidden(True), VECTOR)
    assert [place for place, _ in caught.value.problems] == ["layers", "tables"]
    assert sorted(from_module(Hidden(False), VECTOR).init(KEY)) == ["head.bias", "head.weight"]


class Auxiliary(nn.Module):
    """A second output in training mode, as Inception has."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        return (self.main(x), self.aux(x)) if self.training else self.main(x)


def test_an_entry_of_one_tensor_is_refused() -> None:
    spec = numbers(8)
    with pytest.raises(ConfigError, match="set output to one of 0, 1"):
        from_module(Auxiliary(), spec)
    with pytest.raises(ConfigError, match=r"returns one tensor: omit it, or pass net\.eval"):
        from_module(Auxiliary(), spec, output=0)
    assert from_module(Auxiliary().eval(), spec).outputs == 1


def test_words_are_integers() -> None:
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))
    learner = from_module(words, TOKENS)
    x = torch.arange(12).reshape(2, 6) % 9
    params = learner.init(KEY)
    assert learner.integers and not from_module(nn.Linear(8, 3), VECTOR).integers
    with pytest.raises(ConfigError, match="floats, but the module needs integer indices"):
        learner.apply(params, x.double())
    whole = from_module(words, TOKENS, inputs=lambda x: x.long())
    assert not whole.integers
    torch.testing.assert_close(whole.apply(params, x.double()), learner.apply(params, x))


def test_a_network_without_what_a_step_needs_is_refused() -> None:
    frozen = from_module(nn.Linear(8, 3).requires_grad_(False), VECTOR)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        MAML().build(frozen, VECTOR).init(KEY)
    net = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3))
    learner = from_module(net, TOKENS)
    y = torch.arange(6).remainder(3)
    batch = Batch(torch.arange(36).reshape(6, 6) % 9, y)
    episode = Episode(batch, batch, {"key": KEY, "step": torch.zeros(())})
    method = MAML().build(learner, TOKENS)
    assert method.task_grad is not None
    with pytest.raises(ConfigError, match="no second derivative, so only first-order methods"):
        method.task_grad(method.init(KEY).meta, episode)
    first = MAML(first_order=True).build(learner, TOKENS)
    assert first.task_grad is not None
    assert first.task_grad(first.init(KEY).meta, episode)[0]["head.weight"].isfinite().all()


def test_classes_on_another_axis_are_named() -> None:
    with pytest.raises(ConfigError, match=r"classes on axis 1 of \[4, 3, 8, 8\].*movedim"):
        from_module(nn.Conv2d(2, 3, 1), IMAGE)


def test_what_makes_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 is neither a torch module nor a class or function"):
        from_module(3, VECTOR)
    with pytest.raises(ConfigError, match=r"Linear: is called without arguments.*lambda: Linear"):
        from_module(nn.Linear, VECTOR)
