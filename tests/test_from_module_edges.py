"""Modules at the edges of `from_module`: taken as they are, or refused with what would be right."""

from __future__ import annotations

import copy
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from zoo import TOKENS, VECTOR

from metalearn.algorithms import MAML, ProtoNet
from metalearn.errors import ConfigError
from metalearn.models import from_module
from metalearn.rng import fold_in
from metalearn.types import Batch, Episode, EpisodeSpec

KEY = fold_in(17, "edges")
Parts = namedtuple("Parts", "logits features")
DENSE = EpisodeSpec("classification", 4, 2, 2, (3, 4, 4), 4, 4)
TAGS = EpisodeSpec("classification", 5, 2, 2, (5, 3), 5, 5)


class Net(nn.Module):
    """Linear layers whose outputs come in one of many forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body, self.head = form, nn.Linear(8, 6), nn.Linear(6, 3)
        self.layers = [self.head]
        self.call = lambda z: self.head(z)

    def forward(self, x: Tensor) -> Any:
        if self.form == "inference":
            with torch.inference_mode():
                x = self.body(x)
            return self.head(x)
        z = self.body(x).relu()
        if self.form == "list":
            return self.layers[0](z)
        if self.form == "closure":
            return self.call(z)
        out = self.head(z)
        if self.form == "view":
            return out.view(4, 3)
        if self.form == "squeeze":
            return out.squeeze()
        if self.form == "object":
            return SimpleNamespace(logits=out)
        forms = {"tuple": (out, z), "dict": {"logits": out}, "named": Parts(out, z)}
        return forms[self.form]


class Moved(nn.Module):
    """A convolution with its classes on the last axis."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.layer, self.softmax = nn.Conv2d(3, 4, 3, padding=1), softmax

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x).movedim(1, -1)
        return z.log_softmax(-1) if self.softmax else z


class Tagger(nn.Module):
    """Classes of each word, by a recurrent layer."""

    def __init__(self, turn: bool) -> None:
        super().__init__()
        self.cell, self.head, self.turn = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 5), turn

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.cell(x)[0])
        return z.transpose(1, 2) if self.turn else z


class Mixed(nn.Module):
    """Outputs that no layer alone has made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("blc,cd->bdl", x, self.weight)


def on_meta() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)).eval()
    net[1].running_var = net[1].running_var.to("meta")  # type: ignore[union-attr, operator]
    return net


def shared() -> nn.Module:
    net = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    net[1].running_mean = net[0].running_mean
    return net


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    net[0].register_full_backward_hook(lambda layer, given, taken: None)
    return net


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        (Net("tuple"), {"output": 5}, r"output: forward returns a tuple without 5; it has 0, 1"),
        (Net("dict"), {"output": "logit"}, "without 'logit'; it has 'logits'"),
        (Net("named"), {"output": "logit"}, "without 'logit'; it has 'logits', 'features'"),
        (Net("inference"), {}, "Net: forward fails if gradients are recorded: RuntimeError"),
        (Net("closure").double(), {}, "head.weight: is used by a function in an attribute"),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3)), {}, "changes x in place"),
        (nn.Linear(8, 3).state_dict(), {}, "net: a OrderedDict is neither a torch module"),
        (on_meta(), {}, "1.running_var: is on the meta device"),
        (hooked(), {}, "0: has a hook on its backward pass"),
        (Net("object"), {}, "forward returns a SimpleNamespace.* set output to one of 'logits'"),
        (Net("view"), {}, "Net: takes 4 examples, but not 5: RuntimeError"),
        (Net("squeeze"), {}, r"outputs \[3\] for 1 examples and \[4, 3\] for 4: .*squeeze\(-1\)"),
        (shared(), {}, "1.running_mean: is the same buffer as 0.running_mean"),
    ],
)
def test_the_reason_is_named(net: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_module(net, VECTOR, **options)


def test_words_beyond_a_table_and_sparse_gradients_are_refused() -> None:
    def net(sparse: bool) -> nn.Module:
        words = nn.Embedding(4, 3, sparse=sparse)
        return nn.Sequential(words, nn.Flatten(), nn.LazyLinear(TOKENS.outputs))

    with pytest.raises(ConfigError, match="0: has sparse gradients"):
        from_module(net(True), TOKENS)
    learner = from_module(net(False), TOKENS)
    with pytest.raises(ConfigError, match="x: contains an index outside an embedding"):
        learner.apply(learner.init(KEY), torch.full((2, *TOKENS.x_shape), 4))


def test_a_network_without_parameters_learns_nothing() -> None:
    learner = from_module(nn.Flatten(), VECTOR, head=None)
    with pytest.raises(ConfigError, match="model: has no parameters"):
        ProtoNet().build(learner, VECTOR).init(KEY)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(affine=False), nn.LazyLinear(3))


def pruned(place: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    prune.l1_unstructured(net[place], "weight", 0.5)
    return net


NETS = {
    "list": Net("list"),
    "lazy": lazy(),
    "pruned": pruned(0),
    "pruned head": pruned(2),
    "old weight norm": nn.utils.weight_norm(nn.Linear(8, 3)),
}


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_the_modules_forward_is_learned(name: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 8, dtype=torch.float64), torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
    learner = from_module(NETS[name], VECTOR)
    params = learner.init(KEY)
    assert learner.module is not None
    assert torch.allclose(learner.apply(params, x[0]), learner.module(params)(x[0]))
    method = MAML(inner_lr=0.1).build(learner, VECTOR)
    state = method.init(KEY)
    episode = Episode(
        Batch(x, y), Batch(x, y), {"key": torch.arange(2), "step": torch.zeros(2).double()}
    )
    assert method.step is not None
    moved = method.step(state, episode)[0].meta
    still = {leaf for leaf in params if torch.equal(moved[leaf], state.meta[leaf])}
    assert all(leaf.startswith("stats.") for leaf in still)


@pytest.mark.parametrize(
    ("net", "spec"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), DENSE),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softmax(1)), DENSE),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2)), DENSE),
        (Tagger(turn=True), TAGS),
    ],
)
def test_classes_on_axis_1_are_found_where_the_shape_is_the_same(net: Any, spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"has the classes on axis 1 of .*movedim\(1, -1\)"):
        from_module(net, spec)


def test_classes_on_the_last_axis_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    for net, spec in ((Moved(False), DENSE), (Moved(True), DENSE), (Tagger(False), TAGS)):
        assert from_module(net, spec).outputs == spec.outputs
    assert not caplog.messages
    assert from_module(Mixed(), TAGS).outputs == 5
    assert "have classes on the last axis" in caplog.text


class Block(nn.Module):
    """A layer with a constant of several layers, and an index of it."""

    def __init__(self, mask: Tensor, row: int = 0) -> None:
        super().__init__()
        self.layer, self.row = nn.Linear(8, 8), row
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.mask[self.row]  # type: ignore[index]


class Encoded(nn.Module):
    """A function in an attribute over an encoder, and a last layer called by keyword."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)).double()
        self.enc.requires_grad_(not frozen).train(not frozen)
        self.fc = nn.Linear(6, 3)
        self.encode = lambda x: self.enc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=self.encode(x))  # type: ignore[no-any-return]


def test_constants_of_several_layers_and_of_functions_are_taken() -> None:
    x = torch.randn(4, 8, dtype=torch.float64)
    mask = torch.rand(2, 8)
    blocks = nn.Sequential(Block(mask), Block(mask), nn.Linear(8, 3))
    for net in (blocks, Encoded(frozen=True)):
        learner = from_module(net, VECTOR)
        expected = copy.deepcopy(net).double()(x).detach()
        torch.testing.assert_close(learner.apply(learner.init(KEY), x), expected)
        assert learner.readout == "linear" and learner.features(learner.init(KEY), x).dim() == 2
    assert {"stats.0.mask", "stats.1.mask"} <= set(from_module(blocks, VECTOR).init(KEY))
    drawn = from_module(lambda: nn.Sequential(Block(mask), Block(mask), nn.Linear(8, 3)), VECTOR)
    assert torch.equal(drawn.init(KEY)["stats.1.mask"], mask.double())
    with pytest.raises(ConfigError, match=r"enc\.0\.weight: is used by .* a global variable"):
        from_module(Encoded(frozen=False), VECTOR)
    running = Encoded(frozen=True).train()
    with pytest.raises(ConfigError, match=r"enc\.1\.running_mean: is used by a function"):
        from_module(running, VECTOR)
    with pytest.raises(ConfigError, match=r"enc\.0\.weight: is used by a function"):
        from_module(lambda: Encoded(frozen=True), VECTOR)  # another one for each seed


def test_an_index_that_is_no_word_is_named_as_it_is() -> None:
    learner = from_module(nn.Sequential(Block(torch.ones(2, 8)), nn.Linear(8, 3)), VECTOR)
    params = learner.init(KEY)
    params["stats.0.mask"] = torch.ones((), dtype=torch.float64)
    with pytest.raises(ConfigError, match="forward fails: IndexError"):
        learner.apply(params, torch.ones(4, 8, dtype=torch.float64))
