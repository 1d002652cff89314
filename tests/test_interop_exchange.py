"""Tasks and weights that come from learn2learn and go there."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import learn2learn
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import interop
from metalearn.algorithms import MAML, MetaSGD
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in, normal
from metalearn.tasks import Sinusoid
from metalearn.tree import named_leaves, take, tree_map
from metalearn.types import Episode, EpisodeSpec

F64 = torch.float64
SOURCE = Sinusoid(shots=5, queries=7, amplitude=(0.5, 2.0)).build(dtype=F64)
IMAGES = EpisodeSpec("classification", 3, 2, 2, (1, 16, 16), 3, 20, dtype=F64)

# tasksets

CLASSES, EACH, WAYS, SHOTS, QUERIES = 8, 6, 3, 1, 2


class Noisy(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """x = [class, example, three draws of torch, numpy and Python's random]; labels may start
    anywhere."""

    def __init__(self, first: int = 10, noise: bool = True) -> None:
        self.first, self.noise = first, noise

    def __len__(self) -> int:
        return CLASSES * EACH

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        label, example = divmod(row, EACH)
        if self.noise:
            noise = [float(torch.rand(())), float(np.random.rand()), random.random()]
        else:
            noise = [0.0] * 3
        return torch.tensor([label, example, *noise]), self.first + label


def taskset(
    num_tasks: int = -1, noise: bool = True, labels: list[int] | None = None, remap: bool = True
) -> Any:
    data = learn2learn().data
    dataset = data.MetaDataset(Noisy(noise=noise))
    pick = data.transforms.FusedNWaysKShots(
        dataset, n=WAYS, k=SHOTS + QUERIES, filter_labels=labels
    )
    more = [data.transforms.RemapLabels(dataset)] if remap else []
    return data.Taskset(
        dataset, [pick, data.transforms.LoadData(dataset), *more], num_tasks=num_tasks
    )


@pytest.mark.parametrize("num_tasks", [-1, 4])
def test_an_episode_depends_on_its_key_and_number_alone(num_tasks: int) -> None:
    """In any batch, after any history, from another Taskset; and the global generators stay where
    they were."""
    source = interop.TasksetSource(taskset(num_tasks), shots=SHOTS, dtype=F64)
    key = fold_in(0, "tasks")
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    many = source.sample(key, 5)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]
    used = taskset(num_tasks)
    used.sample(), random.seed(9), torch.manual_seed(9), np.random.seed(9)
    for other in (source, interop.TasksetSource(used, shots=SHOTS, dtype=F64)):
        for number in (4, 0, 2):
            alone = other.sample(key, 1, start=number)
            assert all(
                torch.equal(a[0], b[number])
                for a, b in zip(leaves_of(alone), leaves_of(many), strict=True)
            )
    assert many.support.x.shape == (5, WAYS * SHOTS, 5) and many.query.x.dtype == F64
    assert not torch.equal(many.support.x[0], many.support.x[1])
    assert not torch.equal(source.sample(fold_in(1), 1).support.x[0], many.support.x[0])


def leaves_of(episode: Episode) -> list[Tensor]:
    return list(named_leaves(episode).values())


def test_the_form_of_an_episode_from_a_taskset() -> None:
    """Classes, labels and disjoint examples; label and place tell nothing of a class."""
    for remap in (True, False):
        source = interop.TasksetSource(taskset(remap=remap), shots=SHOTS)
        many = source.sample(fold_in(0, "tasks"), 200)
        for part, each in ((many.support, SHOTS), (many.query, QUERIES)):
            assert torch.equal(
                part.y.sort(-1).values, torch.arange(WAYS).repeat_interleave(each).expand(200, -1)
            )
            assert torch.equal(many.info["class_ids"].gather(1, part.y).float(), part.x[..., 0])
        both = torch.cat([many.support.x, many.query.x], 1)[..., :2]
        assert all(
            len({tuple(row) for row in one}) == WAYS * (SHOTS + QUERIES) for one in both.tolist()
        )
        assert len({tuple(y) for y in many.support.y.tolist()}) == 6  # every order of three labels
        assert set(many.info["class_ids"][:, 0].tolist()) == set(range(CLASSES))
    spec = source.spec
    assert (spec.ways, spec.shots, spec.queries, spec.x_shape, spec.outputs) == (
        WAYS,
        SHOTS,
        QUERIES,
        (5,),
        WAYS,
    )
    assert spec.num_classes == CLASSES


def test_a_taskset_in_one_order_gives_every_example_its_turn_in_the_support() -> None:
    data = learn2learn().data
    dataset = data.MetaDataset(Noisy(noise=False))
    steps = [data.transforms.FilterLabels(dataset, [11, 12, 13]), data.transforms.LoadData(dataset)]
    many = interop.TasksetSource(data.Taskset(dataset, steps), shots=1).sample(fold_in(0), 60)
    assert set(many.support.x[..., 1].flatten().tolist()) == set(range(EACH))


def test_a_taskset_of_few_tasks_and_one_of_few_classes() -> None:
    few = interop.TasksetSource(taskset(4, noise=False), shots=SHOTS).sample(fold_in(0), 60)
    tasks = {
        tuple(sorted(map(tuple, torch.cat([s, q])[:, :2].tolist())))
        for s, q in zip(few.support.x, few.query.x)
    }
    assert len(tasks) == 4
    some_labels = [12, 14, 15, 17]
    source = interop.TasksetSource(taskset(labels=some_labels), shots=SHOTS)
    assert source.spec.num_classes == 4
    assert source.sample(fold_in(0), 30).info["class_ids"].max() == 3
    batch = source.examples(fold_in(0, "pretrain"), 400)
    assert batch.x.shape == (400, 5)
    assert torch.equal(torch.tensor(some_labels)[batch.y] - 10, batch.x[:, 0].long())
    assert set(batch.x[:, 1].tolist()) == set(range(EACH))
    assert min(Counter(batch.y.tolist()).values()) > 60
    assert torch.equal(batch.x, source.examples(fold_in(0, "pretrain"), 400).x)


def test_methods_train_and_are_tested_on_a_taskset() -> None:
    source = interop.TasksetSource(taskset(), shots=SHOTS, dtype=F64)
    method = MAML(inner_lr=0.1).build(MLP(sizes=(8,)).build(source.spec), source.spec)
    state, _ = method.step(method.init(fold_in(0, "init")), source.sample(fold_in(0, "train"), 4))  # type: ignore[misc]
    curve = learning_curve(method, state.meta, source, steps=(0, 1), episodes=6, seed=1)
    assert curve.scores.shape == (6, 2)


def test_tasksets_that_cannot_be_a_source() -> None:
    def no(given: Any, shots: int = 1) -> str:
        with pytest.raises(ConfigError) as caught:
            interop.TasksetSource(given, shots=shots)
        return str(caught.value)

    data = learn2learn().data
    assert "must be a learn2learn.data.Taskset" in no(SOURCE)
    assert "shots: is 4, but a task of this Taskset has 3" in no(taskset(), 4)
    words = data.MetaDataset(
        Noisy(), indices_to_labels={row: "abcdefgh"[row // EACH] for row in range(CLASSES * EACH)}
    )
    assert "must be integers (got 'a')" in no(
        data.Taskset(words, [data.transforms.LoadData(words)])
    )
    dataset = data.MetaDataset(Noisy())
    uneven = data.Taskset(dataset, lambda _: data.transforms.LoadData(dataset)(None)[:10])
    assert "equally many examples" in no(uneven)
    rows = [(torch.ones(4) * row, CLASSES if row == 0 else row // EACH) for row in range(40)]
    few = data.MetaDataset(torch.utils.data.Subset(rows, range(40)))  # type: ignore[arg-type]
    fused, load = data.transforms.FusedNWaysKShots, data.transforms.LoadData(few)
    small = no(data.Taskset(few, [fused(few, n=WAYS, k=3), load]))
    assert f"samples 3 examples per class, but some classes have fewer: {CLASSES} (1)" in small
    ways, shots = data.transforms.NWays(few, WAYS), data.transforms.KShots(few, 3, replacement=True)
    again = data.Taskset(few, [ways, shots, load])
    assert interop.TasksetSource(again, shots=1).sample(fold_in(0), 20).support.x.isfinite().all()
    many = no(data.Taskset(few, [fused(few, n=2 * CLASSES, k=1), load]))
    assert "no task can be sampled" in many


def test_a_source_in_the_form_of_a_taskset() -> None:
    source = interop.TasksetSource(taskset(noise=False), shots=SHOTS)
    tasks = interop.SourceTaskset(source, fold_in(0, "tasks"), num_tasks=5)
    episodes = source.sample(fold_in(0, "tasks"), 5)
    assert len(tasks) == 5 and len(list(tasks)) == 5
    split = learn2learn().data.partition_task
    for number, (x, y) in enumerate(tasks):
        (support_x, support_y), (query_x, query_y) = split(x, y, shots=SHOTS)
        one = take(episodes, number)
        for (a, b), part in (
            ((support_x, support_y), one.support),
            ((query_x, query_y), one.query),
        ):
            assert Counter(zip(map(tuple, a.tolist()), b.tolist())) == Counter(
                zip(map(tuple, part.x.tolist()), part.y.tolist())
            )
    random.seed(3)
    first = tasks.sample()
    assert any(torch.equal(first[0], x) and torch.equal(first[1], y) for x, y in tasks)
    random.seed(3)
    assert torch.equal(first[0], tasks.sample()[0])  # as a Taskset: by Python's random
    endless = interop.SourceTaskset(SOURCE, fold_in(0))
    assert len(endless) == 1 and len([x for x, _ in zip(endless, range(7))]) == 7
    x, y = endless.sample()
    assert x.shape == y.shape == (12, 1) and not torch.equal(x, endless.sample()[0])
    with pytest.raises(IndexError):
        tasks[5]
    with pytest.raises(ConfigError, match="infinite"):
        interop.SourceTaskset(SOURCE, fold_in(0), num_tasks=0)


# weights


class Block(nn.Module):
    """A block as in learn2learn's CNN4: the normalisation is named before the convolution."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(filters)
        self.conv = nn.Conv2d(inputs, filters, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.normalize(self.conv(x)))


class Theirs(nn.Module):
    """As learn2learn's OmniglotCNN: the same blocks under two names, then the mean over places and
    a linear layer."""

    def __init__(self, filters: int = 4) -> None:
        super().__init__()
        self.base = nn.Sequential(
            *[Block(1 if place == 0 else filters, filters) for place in range(4)]
        )
        self.features = nn.Sequential(nn.Identity(), self.base)
        self.classifier = nn.Linear(filters, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def their_model() -> Theirs:
    model = Theirs().double()
    with torch.no_grad():
        for place, value in enumerate([*model.parameters(), *model.buffers()]):
            if value.is_floating_point():
                value.copy_(0.5 * normal(fold_in(7, place), value.shape, F64).abs() + 0.1)
    return model


@pytest.mark.parametrize("how", ["module", "state", "maml", "file"])
def test_a_model_trained_there_says_the_same_here(how: str, tmp_path: Path) -> None:
    model = their_model()
    wrapped = learn2learn().algorithms.MAML(model, lr=0.1)
    torch.save(wrapped.state_dict(), tmp_path / "theirs.pt")
    given = {
        "module": model,
        "state": model.state_dict(),
        "maml": wrapped,
        "file": torch.load(tmp_path / "theirs.pt", weights_only=True),
    }[how]
    x = normal(fold_in(4), (6, *IMAGES.x_shape), F64)
    learner = Conv4(filters=4, downsample="stride", norm="query_batch").build(IMAGES)
    meta = interop.from_learn2learn(given, learner)
    torch.testing.assert_close(learner.apply(meta, x), model.train()(x), rtol=1e-10, atol=1e-12)
    assert list(meta) == list(MAML().build(learner, IMAGES).init(fold_in(0)).meta)
    assert not any(value.requires_grad for value in meta.values())
    # And with their running statistics, which the calls above have moved and which only `running`
    # reads.
    learner = Conv4(filters=4, downsample="stride", norm="running").build(IMAGES)
    meta = interop.from_learn2learn(model, learner)
    torch.testing.assert_close(learner.apply(meta, x), model.eval()(x), rtol=1e-10, atol=1e-12)
    before = {name: value.clone() for name, value in meta.items()}
    model.classifier.weight.data.zero_()
    assert all(torch.equal(meta[name], before[name]) for name in meta)  # a copy, not a view


def test_rates_of_meta_sgd_come_along() -> None:
    model = their_model()
    theirs = learn2learn().algorithms.MetaSGD(model, lr=0.1)
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        for place, rate in enumerate(theirs.lrs):
            rate.fill_(0.01 * (place + 1))
    learner = Conv4(filters=4, downsample="stride").build(IMAGES)
    meta = interop.from_learn2learn(theirs, learner)
    for ours, name in (("convs.0.weight", "base.0.conv.weight"), ("head.bias", "classifier.bias")):
        assert (meta["rates"][ours] == 0.01 * (1 + names.index(name))).all()
    method = MetaSGD().build(learner, IMAGES)
    assert tree_map(lambda a: a.shape, meta) == tree_map(
        lambda a: a.shape, method.init(fold_in(0)).meta
    )
    state = theirs.state_dict()
    del state["lrs.0"]
    with pytest.raises(ConfigError, match=r"17 rates.* 18 parameters"):
        interop.from_learn2learn(state, learner)


def test_equal_names_and_given_names_pair_layers() -> None:
    spec = SOURCE.spec
    learner = MLP(sizes=(4, 4)).build(spec)
    ours = learner.init(fold_in(3, "meta"))
    assert all(
        torch.equal(value, ours[name])
        for name, value in interop.from_learn2learn(ours, learner).items()
    )
    turned = interop.from_learn2learn(dict(reversed(ours.items())), learner)
    assert all(torch.equal(value, ours[name]) for name, value in turned.items())
    sizes = [(4, 1), (4, 4), (1, 4)]
    backwards = nn.ModuleDict(
        {f"l{place}": nn.Linear(sizes[place][1], sizes[place][0]) for place in (2, 1, 0)}
    )
    pairs = {"l0": "layers.0", "l2": "head"}
    found = interop.from_learn2learn(backwards, learner, names=pairs)
    assert torch.equal(found["layers.1.bias"], backwards["l1"].bias.double())
    assert torch.equal(found["head.weight"], backwards["l2"].weight.double())
    with pytest.raises(ConfigError, match=r"layers\.0: is weight \[4, 1\].*l2 is weight \[1, 4\]"):
        interop.from_learn2learn(backwards, learner)
    twice = {"l0": "head", "l1": "head"}
    for wrong, word in (
        ({"l9": "head"}, "'l9' is .* valid: l0, l1, l2"),
        ({"l0": "tail"}, "'tail'"),
        (twice, "twice"),
    ):
        with pytest.raises(ConfigError, match=word):
            interop.from_learn2learn(backwards, learner, names=wrong)


def test_models_that_do_not_fit_are_refused_with_every_layer() -> None:
    learner = Conv4(filters=6, downsample="stride").build(IMAGES)
    with pytest.raises(ConfigError) as caught:
        interop.from_learn2learn(their_model(), learner)
    places = [place for place, _ in caught.value.problems]
    expected = [*[f"norms.{i}" for i in range(4)], "head", *[f"convs.{i}" for i in range(4)], ""]
    assert places == expected
    assert "names={their layer: our layer}" in str(caught.value)
    plain = Conv4(filters=4, downsample="stride", norm="none").build(IMAGES)
    with pytest.raises(
        ConfigError,
        match=r"base\.3\.normalize: weight \[4\], bias \[4\] of the model has no counterpart",
    ):
        interop.from_learn2learn(their_model(), plain)
    missing = {
        name: value
        for name, value in their_model().state_dict().items()
        if not name.startswith("classifier")
    }
    with pytest.raises(
        ConfigError, match=r"head: weight .* has no counterpart among the model's linear layers"
    ):
        interop.from_learn2learn(missing, Conv4(filters=4, downsample="stride").build(IMAGES))
