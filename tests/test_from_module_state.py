"""Modules that depend on more than the arguments of forward: names, memory, modes, generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from zoo import IMAGE, SEQUENCE, VECTOR, Net, pooled

from metalearn import noise
from metalearn.algorithms import MAML
from metalearn.errors import ConfigError
from metalearn.inner import SGD
from metalearn.models import from_module
from metalearn.rng import fold_in
from metalearn.types import Batch, Episode

KEY = fold_in(17, "state")
F64 = torch.float64
Forward = Callable[[Any, Tensor], Any]


def net(forward: Forward, **parts: Any) -> nn.Module:
    """A module whose parts are modules, parameters and other attributes."""
    module = Net(forward)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def two(forward: Forward, **parts: Any) -> nn.Module:
    """A module with a body of 6 features and a head, and `parts`."""
    return net(forward, body=nn.Linear(8, 6), head=nn.Linear(6, 3), **parts)


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1), dtype=F64)


# names


class Nested(nn.Module):
    """A layer in an attribute of any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x).tanh()  # type: ignore[no-any-return]


NAMED: dict[str, Callable[[], nn.Module]] = {
    "stats": lambda: net(
        lambda m, x: m.head(m.stats(x).tanh()), stats=nn.Linear(8, 6), head=nn.Linear(6, 3)
    ),
    "0.stats": lambda: nn.Sequential(Nested("stats"), nn.Linear(8, 3)),
    "stats and stats_": lambda: nn.Sequential(Nested("stats"), Nested("stats_"), nn.Linear(8, 3)),
    "head inside of module": lambda: net(
        lambda m, x: m.out(m.head(m.module(x))), module=Nested("head"), head=nn.Linear(8, 8),
        out=nn.Linear(8, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_names_that_leaves_have_already_are_changed(name: str) -> None:
    torch.manual_seed(0)
    module = NAMED[name]().double()
    learner = from_module(module, VECTOR)
    params, x, y = learner.init(KEY), rows(6), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(learner.apply(params, x), module(x).detach())
    assert len(params) == len(list(module.parameters()))
    method = MAML(inner_lr=1e-12, outer=SGD(lr=0.25)).build(learner, VECTOR)
    state, batch = method.init(KEY), Batch(x[None], y[None])
    info = {"key": torch.arange(1), "step": torch.zeros(1, dtype=F64)}
    assert method.step is not None
    moved = method.step(state, Episode(batch, batch, info))[0].meta
    F.cross_entropy(module(x), y).backward()
    for own, value in module.named_parameters():
        leaf = dict(learner.aliases).get(own, own)
        torch.testing.assert_close(moved[leaf], value.detach() - 0.25 * value.grad)  # type: ignore[operator]


def test_a_weight_normed_recurrent_layer_is_copied() -> None:
    def make() -> nn.Module:
        rnn = parametrizations.weight_norm(nn.GRU(4, 6, batch_first=True), "weight_hh_l0")
        return net(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=rnn, head=nn.Linear(6, 3))

    x = torch.randn(4, 5, 4, dtype=F64)
    for given in (make, make()):
        learner = from_module(given, SEQUENCE)
        params = learner.init(KEY)
        assert learner.module is not None
        params["rnn.parametrizations.weight_hh_l0.original1"] *= 2
        torch.testing.assert_close(learner.apply(params, x), learner.module(params)(x))


def test_a_last_layer_with_a_forward_of_its_own_is_kept() -> None:
    class Cosine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 9 * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))

    module = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), Cosine(6, 3, bias=False)).double()
    learner = from_module(module, VECTOR)
    params, x = learner.init(KEY), rows()
    torch.testing.assert_close(learner.apply(params, x), module(x).detach())
    assert learner.readout == "module" and "head.weight" in params
    torch.testing.assert_close(learner.features(params, x), module[:2](x).detach())
    wide = nn.Sequential(nn.Linear(8, 6), Cosine(6, 5, bias=False))
    assert from_module(wide, VECTOR, head="new").readout == "linear"


# memory


def tied_by_data() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 3))
    module[1].weight.data = module[0].weight.data  # type: ignore[union-attr]
    return module


def transposed_in_a_buffer() -> nn.Module:
    module = two(lambda m, x: m.head(m.body(x @ m.turned)), w=nn.Parameter(torch.eye(8)))
    module.register_buffer("turned", module.w.data.t())  # type: ignore[operator]
    return module


def views_of_one_parameter() -> nn.Module:
    flat = nn.Parameter(torch.randn(48, dtype=F64) / 3)
    return two(lambda m, x: m.head(F.linear(x, m.views[0])), flat=flat, views=[flat.view(6, 8)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tied_by_data, r"1\.weight: shares memory with 0\.weight.* tie them as one parameter"),
        (transposed_in_a_buffer, "turned: shares memory with w"),
        (views_of_one_parameter, r"views\.0: was computed from parameters before forward"),
    ],
)
def test_tensors_that_follow_a_parameter_are_refused(
    make: Callable[[], nn.Module], words: str
) -> None:
    for given in (make, make()):
        with pytest.raises(ConfigError, match=words):
            from_module(given, VECTOR)


def test_parts_of_one_memory_are_taken() -> None:
    both = torch.randn(6, 16)
    module = net(
        lambda m, x: m.head((x @ m.left.T).tanh() + (x @ m.right.T).tanh()),
        left=nn.Parameter(both[:, :8]),
        right=nn.Parameter(both[:, 8:]),
        head=nn.Linear(6, 3),
    )
    assert {"left", "right"} < set(from_module(module, VECTOR).init(KEY))


# modes


class LoRA(nn.Module):
    """Adds a product of two small matrices, merged into the weight in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8) / 3, requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(6, 2))
        self.merged = False

    def train(self, mode: bool = True) -> LoRA:
        if mode == self.merged:
            sign = -1 if mode else 1
            self.weight.data += sign * self.b.data @ self.a.data
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight)
        return out if self.merged else out + x @ self.a.T @ self.b.T


def learns_in_training_mode(drop: float) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(m.training):
            z = m.body(x).tanh()
        return m.head(F.dropout(z, drop, m.training))  # type: ignore[no-any-return]

    return two(forward)


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(m.training):
        return m.head(m.body(x).tanh()).tanh()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "leaf"),
    [
        (learns_in_training_mode(0.0), "body.weight"),
        (learns_in_training_mode(0.3), "body.weight"),
        (nn.Sequential(LoRA(), nn.Linear(6, 3)), "0.a"),
        (two(without_gradients), "head.bias"),
    ],
)
def test_gradients_in_training_mode_alone_are_refused(module: nn.Module, leaf: str) -> None:
    with pytest.raises(ConfigError, match=f"{leaf}: gets a gradient in training mode, but not"):
        from_module(module, VECTOR)


def test_parameters_without_a_gradient_are_named(caplog: pytest.LogCaptureFixture) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        z = m.body(x)
        return m.head(z + m.gain * torch.rand_like(z) if m.training else z)  # type: ignore[no-any-return]

    learner = from_module(two(forward, gain=nn.Parameter(torch.ones(6))), VECTOR)
    assert learner.draws_noise and not caplog.messages  # a gain of noise is learned in training
    from_module(nn.Sequential(LoRA(), nn.Linear(6, 3)).eval(), VECTOR)
    assert "2 parameters of Sequential get no gradient from the outputs" in caplog.text
    assert "0.a, 0.b" in caplog.text


class Constrained(nn.Linear):
    """Keeps its weight in bounds by changing it in forward."""

    def __init__(self, way: str) -> None:
        super().__init__(8, 6)
        self.way = way

    def forward(self, input: Tensor) -> Tensor:
        if self.way == "new":
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 5.0)
        elif self.way == "data":
            self.weight.data.clamp_(min=-9.0)
        else:
            with torch.no_grad():
                self.weight.clamp_(min=-9.0)
        return super().forward(input)


@pytest.mark.parametrize("way", ["new", "data", "in place"])
@pytest.mark.parametrize("train", [False, True])
def test_a_forward_that_changes_its_parameters_is_refused(way: str, train: bool) -> None:
    module = nn.Sequential(Constrained(way), nn.Linear(6, 3)).train(train)
    with pytest.raises(ConfigError, match=r"0\.weight: is changed by forward.*clamp\(min=0\)"):
        from_module(module, VECTOR)


# generators


def noisy(kind: str) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        z = F.dropout(m.body(x), 0.2, m.training)
        if m.training and kind == "layer drop":
            z = z if random.random() < 1e-6 else 2 * z
        elif m.training:
            draw = np.random if kind == "numpy" else m.own
            z = z + 1e-12 * draw.standard_normal()
        return m.head(z)  # type: ignore[no-any-return]

    return two(forward, own=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("layer drop", "Python's random"), ("numpy", r"numpy\.random"), ("own", "own")],
)
def test_noise_of_other_generators_than_torchs_is_refused(kind: str, words: str) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=f"draws from {words}, which no key determines"):
        from_module(noisy(kind), VECTOR)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]
    assert not from_module(noisy(kind).eval(), VECTOR).draws_noise


def test_noise_of_a_generator_out_of_sight_is_refused() -> None:
    hidden = np.random.default_rng(0)
    module = two(lambda m, x: m.head(m.body(x)) + m.training * float(hidden.normal()))
    with pytest.raises(ConfigError, match="another output when it is called again"):
        from_module(module, VECTOR)


@pytest.mark.parametrize("kind", ["numpy", "python"])
def test_a_constructor_draws_with_any_generator_of_a_seed(kind: str) -> None:
    def make() -> nn.Module:
        draw = np.random.normal if kind == "numpy" else random.gauss
        w = torch.tensor([[draw(0.0, 1.0) for _ in range(8)] for _ in range(8)])
        return two(lambda m, x: m.head(m.body(x @ m.w)), w=nn.Parameter(w))

    learner = from_module(make, VECTOR)
    one, again, other = (learner.init(key)["w"] for key in (KEY, KEY, fold_in(18)))
    assert torch.equal(one, again) and not torch.equal(one, other)
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    learner.init(KEY)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]


def test_a_constructor_without_a_seed_is_refused() -> None:
    def make() -> nn.Module:
        w = nn.Parameter(torch.from_numpy(np.random.default_rng().normal(size=(8, 8))))
        return two(lambda m, x: m.head(m.body(x @ m.w)), w=w)

    with pytest.raises(ConfigError, match="w: has other values each time it is built"):
        from_module(make, VECTOR)


# batch norms of other classes


class Affine(nn.BatchNorm2d):
    """Always normalises with its running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class Activated(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_the_policy_of_a_batch_norm_is_that_of_its_forward() -> None:
    def learner(kind: type[nn.BatchNorm2d], **options: Any) -> Any:
        return from_module(pooled(nn.Conv2d(2, 6, 3), kind(6)), IMAGE, **options)

    frozen, of_batch = learner(Affine), learner(Activated)
    assert frozen.normalisation == "none" and of_batch.normalisation == "query_batch"
    assert not MAML().build(frozen, IMAGE).traits.transductive
    assert "stats.1.running_mean" in frozen.init(KEY)
    for policy in ("query_batch", "support", "running"):
        with pytest.raises(ConfigError, match=f"forward of its own.* {policy} does not change"):
            learner(Affine, policy=policy)
        assert learner(Activated, policy=policy).normalisation == policy
    assert frozen.gains == ("1.weight", "1.bias")


# hooks


@pytest.mark.parametrize("called", [False, True])
def test_a_hook_that_sets_what_the_original_module_holds_is_refused(called: bool) -> None:
    module: Any = two(lambda m, x: m.head(m.body(x) + m.seen["mean"]), seen={}).double()
    module.body.register_forward_hook(lambda m, x, z: module.seen.update(mean=z.mean(0)))
    words = r"forward fails .*KeyError: 'mean' \(in a copy of the module; a hook must be a method"
    if called:
        words = "seen.mean: is set by a function in a hook or an attribute, which in a copy sets"
        with torch.no_grad():
            module(rows())
    with pytest.raises(ConfigError, match=words):
        from_module(module, VECTOR)


def test_functions_of_torch_without_a_batching_rule_have_a_hint() -> None:
    from torch.utils.checkpoint import checkpoint

    module = two(lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)))
    with pytest.raises(ConfigError, match=r"Call the block itself instead of torch\.utils\.check"):
        from_module(module, VECTOR)


def test_noise_from_keys_is_the_same_again() -> None:
    learner = from_module(two(lambda m, x: m.head(F.dropout(m.body(x), 0.5, m.training))), VECTOR)
    params, outputs = learner.init(KEY), []
    for _ in range(2):
        with noise.noise_from(KEY):
            outputs.append(learner.apply(params, rows()))
    assert torch.equal(*outputs)
