"""Learned optimizers in use: as a torch.optim.Optimizer on anybody's module, and as a way of learning new tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Commands, commands_in, refused
from torch import Tensor, nn

import metalearn as ml
from metalearn import LearnedOptimizer
from metalearn.component import Component
from metalearn.errors import ConfigError
from metalearn.inner.rules import Adam
from metalearn.learned_optimizers import (
    LEARNED_RULES,
    LSTM,
    Hyper,
    LearnedAdam,
    LearnedRates,
    LearnedSGD,
    LearnToOptimize,
    TunedAdam,
)
from metalearn.models import MLP
from metalearn.rng import fold_in, normal
from metalearn.run import checkpoint
from metalearn.tasks import Sinusoid
from metalearn.tree import named_leaves, take, tree_map

F64 = torch.float64
X, Y = normal(fold_in(0, "x"), (12, 3), F64), normal(fold_in(0, "y"), (12, 2), F64)


def module() -> nn.Module:
    """Anybody's network, always with the same start; its second bias has no use."""
    made = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    for name, param in made.named_parameters():
        param.data = 0.5 * normal(fold_in(1, name), param.shape, F64)
    return made


def theta_of(rule: Component, like: nn.Module | None = None) -> dict[str, Tensor]:
    named = dict((like or module()).named_parameters())
    theta: dict[str, Tensor] = rule.build(F64, like=named).init(fold_in(0, "theta"))  # type: ignore[attr-defined]
    return theta


def optimizer_of(rule: Component, network: nn.Module, num_steps: int = 9) -> LearnedOptimizer:
    return LearnedOptimizer(network.named_parameters(), rule, theta_of(rule), num_steps)


def train(network: nn.Module, optimizer: Any, steps: int) -> list[float]:
    """Steps with a closure; the losses that they return."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (network(X) - Y).square().mean()
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ on anybody's module


def test_learned_adam_that_has_learned_nothing_trains_as_torchs() -> None:
    ours, theirs = module(), module()
    mine = train(ours, optimizer_of(LearnedAdam(lr=0.05), ours), 6)
    assert mine == pytest.approx(train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.05), 6), rel=1e-12)
    assert mine[-1] < mine[0]


@pytest.mark.parametrize("name", LEARNED_RULES)
def test_it_walks_the_path_of_the_pure_rule(name: str) -> None:
    """The same points as the pair inside a loop of pure functions, the loss and the horizon included."""
    rule, network = LEARNED_RULES[name](), module()
    theta = {leaf: value + 0.05 * normal(fold_in(2, leaf), value.shape, F64) for leaf, value in theta_of(rule).items()}
    optimizer = LearnedOptimizer(network.named_parameters(), rule, theta, 9)
    now = {leaf: value.detach().clone() for leaf, value in network.named_parameters()}
    pair = rule.build(F64, like=now).rule(theta, 9)  # type: ignore[attr-defined]
    state = pair.init(now)
    for _ in range(3):
        grads, value = torch.func.grad_and_value(
            lambda p: (torch.func.functional_call(network, p, (X,)) - Y).square().mean()
        )(now)
        updates, state = pair.update(grads, state, now, value)
        now = {leaf: now[leaf] + updates[leaf] for leaf in now}
    train(network, optimizer, 3)
    torch.testing.assert_close(dict(network.named_parameters()), now, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [LSTM(hidden=4), Hyper(hidden=4), LearnedAdam()], ids=lambda rule: rule.name)
def test_a_state_dict_goes_on_where_it_was_taken(rule: Component, tmp_path: Path) -> None:
    """Three steps, saved and loaded without pickled code, three more: bit for bit those of six."""
    straight, stopped = module(), module()
    train(straight, optimizer_of(rule, straight), 6)
    optimizer = optimizer_of(rule, stopped)
    train(stopped, optimizer, 3)
    torch.save({"model": stopped.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    again = module()
    again.load_state_dict(kept["model"])
    fresh = optimizer_of(rule, again, num_steps=2)
    fresh.load_state_dict(kept["optimizer"])
    assert fresh.param_groups[0]["num_steps"] == 9  # the horizon that it began with
    train(again, fresh, 3)
    assert same(again, straight)
    cold = module()
    cold.load_state_dict(kept["model"])
    train(cold, optimizer_of(rule, cold), 3)
    assert not same(cold, straight)  # the state has a say


def test_a_file_holds_rule_and_theta(tmp_path: Path) -> None:
    rule, one, two = LSTM(hidden=3, scale=0.5), module(), module()
    optimizer = optimizer_of(rule, one)
    optimizer.save(tmp_path / "lstm.pt")
    assert set(torch.load(tmp_path / "lstm.pt", weights_only=True)) == {"rule", "theta"}
    loaded = LearnedOptimizer.load(tmp_path / "lstm.pt", two.parameters(), num_steps=9)
    assert loaded.rule == rule and type(loaded) is LearnedOptimizer
    train(one, optimizer, 2)
    train(two, loaded, 2)
    assert same(one, two)


def test_float32_networks_take_a_theta_of_any_precision(tmp_path: Path) -> None:
    optimizer_of(LearnedAdam(lr=0.05), module()).save(tmp_path / "adam.pt")
    network = module().float()
    optimizer = LearnedOptimizer.load(tmp_path / "adam.pt", network.parameters(), num_steps=3)
    loss = network(X.float()).square().mean()
    loss.backward()
    assert optimizer.step(loss=loss) is loss
    assert {param.dtype for param in network.parameters()} == {torch.float32}
    kept = optimizer.state_dict()["state"][0]["rule"]
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_several_groups_are_one_to_the_rule() -> None:
    one, two, rule = module(), module(), Hyper(hidden=4)
    train(one, optimizer_of(rule, one), 3)
    groups = [{"params": list(part.named_parameters())} for part in (two[0], two[2])]  # type: ignore[index]
    named = [{"params": [(f"{place}.{name}", p) for name, p in group["params"]]} for place, group in enumerate(groups)]
    train(two, LearnedOptimizer(named, rule, theta_of(rule), 9), 3)
    assert same(one, two)


def test_a_parameter_without_a_gradient_stays() -> None:
    network = module()
    network[2].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    train(network, optimizer_of(LSTM(hidden=3), network), 2)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"2.bias"}


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "steps_zero": (lambda: optimizer_of(LearnedSGD(), module(), 0), "num_steps"),
    "steps_part": (lambda: optimizer_of(LearnedSGD(), module(), 2.5), "num_steps"),  # type: ignore[arg-type]
    "own_options": (lambda: LearnedOptimizer([{"params": module().parameters(), "lr": 1.0}], LearnedSGD(),
                                             theta_of(LearnedSGD()), 9), "lr"),
    "group_later": (lambda: optimizer_of(LearnedSGD(), module()).add_param_group({"params": [torch.ones(2)]}), "once"),
    "half": (lambda: LearnedOptimizer(module().half().parameters(), LearnedSGD(), theta_of(LearnedSGD()), 9),
             "float16"),
    "mixed": (lambda: LearnedOptimizer([*module().parameters(), *module().float().parameters()], LearnedSGD(),
                                       theta_of(LearnedSGD()), 9), "float32"),
    "other_theta": (lambda: LearnedOptimizer(module().parameters(), LSTM(hidden=3), theta_of(LSTM(hidden=4)), 9),
                    "lstm.0.weight"),
    "other_network": (lambda: LearnedOptimizer(module().parameters(), LearnedRates(), theta_of(LearnedRates()), 9),
                      "learned_rates"),
    "no_loss": (lambda: optimizer_of(Hyper(hidden=3), module()).step(), "reads the loss"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_refused_with_a_sentence(case: str) -> None:
    make, word = BAD[case]
    with pytest.raises(ConfigError, match=word):
        make()


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer(layer.parameters(), LearnedSGD(), LearnedSGD().build().init(fold_in(0)), 3)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("content", [b"", b"nonsense", "tensors", "rule", "list"])
def test_files_that_hold_no_optimizer_are_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    made: dict[str, Any] = {
        "tensors": {"a": torch.ones(2)},
        "rule": {"rule": json.dumps({"name": "lstmm"}), "theta": {"a": torch.ones(2)}},
        "list": [1, 2],
    }
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(made[content], path)
    with pytest.raises(ConfigError, match=r"file\.pt"):
        LearnedOptimizer.load(path, module().parameters(), num_steps=3)
    with pytest.raises(ConfigError, match=r"nowhere"):
        LearnedOptimizer.load(tmp_path / "nowhere", module().parameters(), num_steps=3)


# --------------------------------------------------------------------------------------- as a way of learning new tasks

SOURCE = Sinusoid(shots=5, queries=6).build(dtype=F64)
LEARNER = MLP(sizes=(7,)).build(SOURCE.spec)


def test_the_meta_gradient_is_that_of_the_query_loss_after_the_steps() -> None:
    """By a loop of its own, over two of the steps; and the parameters of the start have none."""
    options: dict[str, Any] = {"rule": LearnedAdam(lr=0.05), "inner_steps": 3, "loss_at": (1, 3), "clip": 1e9}
    episode = take(SOURCE.sample(fold_in(0, "episode"), 1), 0)
    for first_order in (True, False):
        method = LearnToOptimize(init="meta", first_order=first_order, **options).build(LEARNER, SOURCE.spec)
        meta = method.init(fold_in(0, "init")).meta

        def query_loss(theta: Any, meta: Any = meta, first_order: bool = first_order) -> Tensor:
            rule = LearnedAdam(lr=0.05).build(F64).rule(theta, 3)
            now, losses = meta["params"], []
            state = rule.init(now)
            for _ in range(3):
                grads, value = torch.func.grad_and_value(lambda p: score(p, episode.support))(now)
                grads = tree_map(lambda g: g.detach(), grads) if first_order else grads
                updates, state = rule.update(grads, state, now, value)
                now = {name: now[name] + updates[name] for name in now}
                losses.append(score(now, episode.query))
            return (losses[0] + losses[2]) / 2

        assert method.task_grad is not None
        grads, found = method.task_grad(meta, episode)
        expected, _ = torch.func.grad_and_value(query_loss)(meta["rule"])
        assert set(grads) == {"rule"}
        torch.testing.assert_close(grads["rule"], expected, rtol=1e-9, atol=1e-12)
        assert found["grad_lost"] == 0 and found["grad_norm"] > 0


def score(params: Any, batch: Any) -> Tensor:
    return (LEARNER.apply(params, batch.x) - batch.y).square().mean()


def test_the_start_stands_still_and_the_rule_moves() -> None:
    method = LearnToOptimize(init="meta", outer=Adam(lr=0.1)).build(LEARNER, SOURCE.spec)
    state = method.init(fold_in(0, "init"))
    assert method.step is not None
    after, _ = method.step(state, SOURCE.sample(fold_in(0, "train"), 3))
    before, now = named_leaves(state.meta), named_leaves(after.meta)
    moved = {name for name in before if not torch.equal(before[name], now[name])}
    assert moved == {f"rule.{leaf}" for leaf in state.meta["rule"]}


def test_a_long_gradient_is_shortened_and_a_lost_one_is_counted() -> None:
    method = LearnToOptimize(rule=LearnedSGD(lr=0.05), clip=1e-3).build(LEARNER, SOURCE.spec)
    meta, episode = method.init(fold_in(0, "init")).meta, take(SOURCE.sample(fold_in(0, "episode"), 1), 0)
    assert method.task_grad is not None
    grads, found = method.task_grad(meta, episode)
    assert grads["rule"]["log_lr"].abs() == pytest.approx(1e-3) and found["grad_norm"] > 1e-3
    worse = {**meta, "rule": {"log_lr": torch.tensor(800.0, dtype=F64)}}  # e^800 is no number
    grads, found = method.task_grad(worse, episode)
    assert grads["rule"]["log_lr"] == 0 and found["grad_lost"] == 1 and found["grad_norm"] == 0


@pytest.mark.parametrize("method", [TunedAdam, LearnToOptimize])
def test_starts_differ_in_what_they_hold(method: Any) -> None:
    """Classes: nothing; the body, with a head drawn for each task; all. Regression: nothing, all, all."""
    from clusters import Clusters

    classes = Clusters("train", 8)
    learner = MLP(sizes=(4,)).build(classes.spec)
    held: dict[str, set[str]] = {}
    for init in ("random", "pretrained", "meta"):
        made = method(init=init).build(learner, classes.spec)
        meta = made.init(fold_in(0, "init")).meta
        held[init] = set(meta.get("params", {}))
        assert made.traits.fixed_ways == (init == "meta")
        episode = classes.sample(fold_in(0, "episode"), 2)
        said = made.learn(meta, episode.support, episode.query.x, (0,), key=fold_in(0, "a")).predictions
        other = made.learn(meta, episode.support, episode.query.x, (0,), key=fold_in(0, "b")).predictions
        assert torch.equal(said, other) == (init == "meta")  # drawn from the task's key
        regression = method(init=init).build(LEARNER, SOURCE.spec).init(fold_in(0, "init")).meta
        assert set(regression.get("params", {})) == (set() if init == "random" else set(LEARNER.init(fold_in(0))))
    assert held["random"] == set() and held["meta"] == set(learner.init(fold_in(0)))
    assert held["pretrained"] == {name for name in held["meta"] if not name.startswith("head.")}


@pytest.mark.parametrize("at", [(0, 2), (2, 1), (3, 3), (6,)])
def test_losses_lie_on_the_path(at: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="loss_at"):
        LearnToOptimize(loss_at=at, inner_steps=5)
    with pytest.raises(ConfigError, match=r"task\.queries"):
        LearnToOptimize().build(LEARNER, Sinusoid(queries=0).build(dtype=F64).spec)


# ---------------------------------------------------------------------------------------------- in runs and comparisons


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("learned")) as commands:
        yield commands


def write(folder: Path, name: str, **sections: Any) -> Path:
    """An experiment on sinusoids, as short as can be."""
    data = {
        "experiment": name,
        "task": {"source": "sinusoid", "shots": 5, "queries": 5},
        "model": {"name": "mlp", "sizes": [6]},
        "run": {"meta_steps": 4, "tasks_per_step": 3, "executor": "vmap", "threads": 1, "validate": {"episodes": 4}},
        "evaluate": {"episodes": 6, "steps": [0, 1, 2]},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**data, **sections}))
    return path


@pytest.fixture(scope="module")
def cross(metalearn: Commands) -> Path:
    """Some of the cross of starts and optimizers, in one comparison."""
    rules = {"adam": {"name": "tuned_adam"}, "scalars": {"name": "learned_optimizer"},
             "network": {"name": "learned_optimizer", "rule": {"name": "adafactor_mlp"}}}  # fmt: skip
    starts = {"random": {}, "pretrained": {"start": "fine_tune"}, "meta": {"start": "maml"}}
    rows: list[dict[str, Any]] = [{"name": "maml"}, {"name": "fine_tune"}]
    for label in ("adam_meta", "scalars_random", "scalars_meta", "network_random", "network_pretrained"):
        rule, init = label.split("_")
        rows.append({"label": label, "init": init, **rules[rule], **starts[init]})
    done = metalearn("compare", write(metalearn.folder, "cross", methods=rows), "--out", "cross")
    assert done.code == 0, done.err
    return metalearn.folder / "cross"


def result(folder: Path, label: str) -> Any:
    return json.loads((folder / "methods" / label / "seed-0" / "result.json").read_text())


def test_starts_come_from_other_rows_and_are_paid_for(cross: Path) -> None:
    """Parameters are those of the row named, bit for bit; its training stands in the bill, before the own one."""
    maml, pretrained = (ml.load_run(cross / "methods" / label / "seed-0") for label in ("maml", "fine_tune"))
    for label in ("adam_meta", "scalars_meta", "network_pretrained"):
        other = maml.state.meta if label.endswith("_meta") else pretrained.state.meta["params"]
        run = ml.load_run(cross / "methods" / label / "seed-0")
        torch.testing.assert_close(run.state.meta["params"], other, rtol=0, atol=0)
    cost = {label: result(cross, label)["cost"] for label in ("maml", "adam_meta", "scalars_meta", "scalars_random",
                                                              "network_pretrained", "fine_tune")}  # fmt: skip
    assert cost["adam_meta"]["meta_train"]["flops"] == cost["maml"]["meta_train"]["flops"] > 0
    own = cost["scalars_random"]["meta_train"]["flops"]
    assert cost["scalars_meta"]["meta_train"]["flops"] == cost["maml"]["meta_train"]["flops"] + own
    assert cost["network_pretrained"]["pretrain"]["flops"] == cost["fine_tune"]["pretrain"]["flops"] > 0


def test_the_report_tells_start_and_optimizer_apart(cross: Path) -> None:
    page = (cross / "report.html").read_text()
    assert "learned_adam instead of Adam" in page or "Adam instead of learned_adam" in page
    assert result(cross, "network_pretrained")["factors"] == {"start": "pretrained", "optimizer": "adafactor_mlp"}
    pairs = json.loads((cross / "comparison.json").read_text())["break_even"]
    assert {"scalars_meta", "network_random"} <= {row[side] for row in pairs for side in "ab"}


def test_a_run_is_loaded_as_an_optimizer(cross: Path, metalearn: Commands) -> None:
    """From the directory, a checkpoint in it, or the file that it is saved to: the same theta."""
    folder = cross / "methods" / "network_pretrained" / "seed-0"
    network = module()
    found = LearnedOptimizer.load(folder, network.parameters(), num_steps=5)
    learned = ml.load_run(folder).state.meta["rule"]
    torch.testing.assert_close(found.theta, {name: value.double() for name, value in learned.items()})
    assert found.rule.name == "adafactor_mlp"  # type: ignore[attr-defined]
    last = checkpoint.path_of(folder / "checkpoints", checkpoint.steps_in(folder / "checkpoints")[-1])
    other = LearnedOptimizer.load(last, module().parameters(), num_steps=5)
    torch.testing.assert_close(other.theta, found.theta)
    before = [param.detach().clone() for param in network.parameters()]
    losses = train(network, found, 3)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)) and len(losses) == 3
    for label, word in (("maml", "learns no optimizer"), ("adam_meta", "learns no optimizer")):
        with pytest.raises(ConfigError, match=word):
            LearnedOptimizer.load(cross / "methods" / label / "seed-0", network.parameters(), num_steps=5)


def test_a_rule_goes_on_from_another_run_of_it(cross: Path, metalearn: Commands) -> None:
    start = str(cross / "methods" / "network_random" / "seed-0")
    method = {"name": "learned_optimizer", "rule": {"name": "adafactor_mlp"}, "start": start}
    file = write(metalearn.folder, "goes_on", method=method, run={"meta_steps": 0, "executor": "vmap"})
    assert metalearn("train", file, "--out", "goes_on").code == 0
    torch.testing.assert_close(ml.load_run(metalearn.folder / "goes_on").state.meta, ml.load_run(start).state.meta)


def test_starts_that_cannot_be_are_refused(cross: Path, metalearn: Commands) -> None:
    maml = str(cross / "methods" / "maml" / "seed-0")
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"name": "tuned_adam", "init": "meta"}, ("method.start", "is missing")),
        ({"name": "learned_optimizer", "init": "pretrained"}, ("method.start", "fine_tune")),
        ({"name": "learned_optimizer", "start": maml}, ("method.start", "another model")),  # there is nothing to take
        ({"name": "learned_optimizer", "init": "nowhere"}, ("method.init",)),
        ({"name": "learned_optimizer", "rule": {"name": "lstm", "hiden": 3}}, ("method.rule", "hidden")),
        ({"name": "learned_optimizer", "rule": {"name": "lstmm"}}, ("method.rule", "lstm")),
    ]
    for number, (method, words) in enumerate(cases):
        refused(metalearn("train", write(metalearn.folder, f"bad{number}", method=method), "--out", "bad"), *words)
    assert not (metalearn.folder / "bad").exists()
