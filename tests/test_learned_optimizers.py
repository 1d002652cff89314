"""Learned optimizers as methods: gradients, starts, runs, comparisons, loading."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from commandline import Commands, refused
from torch import Tensor, nn

import metalearn as ml
from metalearn import LearnedOptimizer
from metalearn.errors import ConfigError
from metalearn.executors import executor, trace
from metalearn.inner.rules import Adam
from metalearn.learned_optimizers import LSTM, LearnedAdam, LearnedSGD, LearnToOptimize, TunedAdam
from metalearn.models import MLP
from metalearn.results.factors import run_family
from metalearn.rng import fold_in
from metalearn.storage import checkpoint
from metalearn.tasks import Sinusoid
from metalearn.tree import named_leaves, take, tree_map

F64 = torch.float64
# as a way
# of learning new tasks

SOURCE = Sinusoid(shots=5, queries=6).build(dtype=F64)
LEARNER = MLP(sizes=(7,)).build(SOURCE.spec)


def test_the_meta_gradient_is_that_of_the_query_loss_after_the_steps() -> None:
    """By a loop of its own, over two of the steps; and the parameters of the start have none."""
    options: dict[str, Any] = {
        "rule": LearnedAdam(lr=0.05),
        "inner_steps": 3,
        "loss_at": (1, 3),
        "clip": 1e9,
    }
    episode = take(SOURCE.sample(fold_in(0, "episode"), 1), 0)
    for first_order in (True, False):
        method = LearnToOptimize(init="meta", first_order=first_order, **options).build(
            LEARNER, SOURCE.spec
        )
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
        assert found["grad_not_finite"] == 0 and found["grad_norm"] > 0


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
    meta, episode = (
        method.init(fold_in(0, "init")).meta,
        take(SOURCE.sample(fold_in(0, "episode"), 1), 0),
    )
    assert method.task_grad is not None
    grads, found = method.task_grad(meta, episode)
    assert grads["rule"]["log_lr"].abs() == pytest.approx(1e-3) and found["grad_norm"] > 1e-3
    worse = {**meta, "rule": {"log_lr": torch.tensor(800.0, dtype=F64)}}  # e^800 is no number
    grads, found = method.task_grad(worse, episode)
    assert (
        grads["rule"]["log_lr"] == 0 and found["grad_not_finite"] == 1 and found["grad_norm"] == 0
    )


def test_one_compiled_step_serves_all_inner_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor `compiled_steps`, without the C++ compiler, equals eager in two outer steps."""
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    method = LearnToOptimize(rule=LSTM(hidden=3), inner_steps=4, loss_at=(2, 4)).build(
        LEARNER, SOURCE.spec
    )
    ends = []
    for how in ("vmap", "compiled_steps"):
        state, step = method.init(fold_in(0, "init")), executor.make_step(method, how)
        for number in range(2):
            state, metrics = step(state, SOURCE.sample(fold_in(number, "train"), 3))
        ends.append((named_leaves(state), metrics))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [TunedAdam, LearnToOptimize])
def test_starts_differ_in_what_they_hold(method: Any) -> None:
    """Classes: nothing; the body, with a head for each task; all. Regression: nothing, all, all."""
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
        predictions = made.learn(
            meta, episode.support, episode.query.x, (0,), key=fold_in(0, "a")
        ).predictions
        other = made.learn(
            meta, episode.support, episode.query.x, (0,), key=fold_in(0, "b")
        ).predictions
        assert torch.equal(predictions, other) == (init == "meta")  # drawn from the task's key
        regression = method(init=init).build(LEARNER, SOURCE.spec).init(fold_in(0, "init")).meta
        assert set(regression.get("params", {})) == (
            set() if init == "random" else set(LEARNER.init(fold_in(0)))
        )
    assert held["random"] == set() and held["meta"] == set(learner.init(fold_in(0)))
    assert held["pretrained"] == {name for name in held["meta"] if not name.startswith("head.")}


@pytest.mark.parametrize("at", [(0, 2), (2, 1), (3, 3), (6,)])
def test_losses_lie_on_the_path(at: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="loss_at"):
        LearnToOptimize(loss_at=at, inner_steps=5)
    with pytest.raises(ConfigError, match=r"task\.queries"):
        LearnToOptimize().build(LEARNER, Sinusoid(queries=0).build(dtype=F64).spec)


# in
# runs and comparisons


def write(folder: Path, name: str, **sections: Any) -> Path:
    """An experiment on sinusoids, as short as can be."""
    data = {
        "experiment": name,
        "task": {"source": "sinusoid", "shots": 5, "queries": 5},
        "model": {"name": "mlp", "sizes": [6]},
        "run": {
            "meta_steps": 4,
            "tasks_per_step": 3,
            "executor": "vmap",
            "threads": 1,
            "validate": {"episodes": 4},
        },
        "evaluate": {"episodes": 6, "steps": [0, 1, 2]},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**data, **sections}))
    return path


@pytest.fixture(scope="module")
def cross(metalearn: Commands) -> Path:
    """Some of the cross of starts and optimizers, in one comparison."""
    rules = {
        "adam": {"name": "tuned_adam"},
        "scalars": {"name": "learned_optimizer"},
        "network": {"name": "learned_optimizer", "rule": {"name": "adafactor_mlp"}},
    }
    starts = {"random": {}, "pretrained": {"start": "fine_tune"}, "meta": {"start": "maml"}}
    rows: list[dict[str, Any]] = [{"name": "maml"}, {"name": "fine_tune"}]
    for label in (
        "adam_meta",
        "scalars_random",
        "scalars_meta",
        "network_random",
        "network_pretrained",
    ):
        rule, init = label.split("_")
        rows.append({"label": label, "init": init, **rules[rule], **starts[init]})
    rows.append(
        {"name": "learn_optimizer", "unroll": 2, "horizon": {"name": "constant", "steps": 2}}
    )
    done = metalearn("compare", write(metalearn.folder, "cross", methods=rows), "--out", "cross")
    assert done.code == 0, done.err
    return metalearn.folder / "cross"


def result(folder: Path, label: str) -> Any:
    return json.loads((folder / "methods" / label / "seed-0" / "result.json").read_text())


def test_starts_come_from_other_rows_and_are_paid_for(cross: Path) -> None:
    """Parameters equal those of the named row bit for bit; the cost of its training is added."""
    maml, pretrained = (
        ml.load_run(cross / "methods" / label / "seed-0") for label in ("maml", "fine_tune")
    )
    for label in ("adam_meta", "scalars_meta", "network_pretrained"):
        other = maml.state.meta if label.endswith("_meta") else pretrained.state.meta["params"]
        run = ml.load_run(cross / "methods" / label / "seed-0")
        torch.testing.assert_close(run.state.meta["params"], other, rtol=0, atol=0)
    cost = {
        label: result(cross, label)["cost"]
        for label in (
            "maml",
            "adam_meta",
            "scalars_meta",
            "scalars_random",
            "network_pretrained",
            "fine_tune",
        )
    }
    assert cost["adam_meta"]["meta_train"]["flops"] == cost["maml"]["meta_train"]["flops"] > 0
    own = cost["scalars_random"]["meta_train"]["flops"]
    assert cost["scalars_meta"]["meta_train"]["flops"] == cost["maml"]["meta_train"]["flops"] + own
    assert (
        cost["network_pretrained"]["pretrain"]["flops"]
        == cost["fine_tune"]["pretrain"]["flops"]
        > 0
    )


def test_the_report_tells_start_and_optimizer_apart(cross: Path) -> None:
    page = (cross / "report.html").read_text()
    assert "learned_adam instead of Adam" in page or "Adam instead of learned_adam" in page
    expected = {"start": "pretrained", "optimizer": "adafactor_mlp"}
    assert result(cross, "network_pretrained")["factors"] == expected
    pairs = json.loads((cross / "comparison.json").read_text())["break_even"]
    assert {"scalars_meta", "network_random"} <= {row[side] for row in pairs for side in "ab"}


@pytest.mark.parametrize(
    ("consumes", "start", "family"),
    [
        ("nothing", None, "scratch"),
        ("nothing", "random", "scratch"),
        ("nothing", "pretrained", "transfer"),
        ("nothing", "meta-learned", "meta-learned"),
        ("examples", None, "transfer"),
        ("episodes", None, "meta-learned"),
    ],
)
def test_a_row_without_training_belongs_to_where_it_starts(
    consumes: str, start: str | None, family: str
) -> None:
    """Which family the report counts a row to, so that it can say which one is lacking."""
    run = SimpleNamespace(
        traits={"consumes": consumes}, result={"factors": {"start": start} if start else {}}
    )
    assert run_family(run) == family  # type: ignore[arg-type]


def test_a_run_is_loaded_as_an_optimizer(cross: Path, metalearn: Commands) -> None:
    """From the directory, a checkpoint in it, or the file that it is saved to: the same theta."""
    folder = cross / "methods" / "network_pretrained" / "seed-0"
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    found = LearnedOptimizer.load(folder, network.parameters(), num_steps=5)
    learned = ml.load_run(folder).state.meta["rule"]
    torch.testing.assert_close(
        found.theta, {name: value.double() for name, value in learned.items()}
    )
    assert found.rule.name == "adafactor_mlp"  # type: ignore[attr-defined]
    last = checkpoint.path_of(
        folder / "checkpoints", checkpoint.steps_in(folder / "checkpoints")[-1]
    )
    other = LearnedOptimizer.load(last, network.parameters(), num_steps=5)
    torch.testing.assert_close(other.theta, found.theta)
    before = [param.detach().clone() for param in network.parameters()]
    loss = network(torch.ones(4, 3, dtype=F64)).square().mean()
    loss.backward()
    found.step(loss=loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    loaded = LearnedOptimizer.load(
        cross / "methods" / "learn_optimizer" / "seed-0", network.parameters(), num_steps=5
    )
    assert loaded.rule.name == "lstm" and "lstm.0.weight" in loaded.theta  # type: ignore[attr-defined]
    for label, word in (
        ("maml", "does not learn an optimizer"),
        ("adam_meta", "does not learn an optimizer"),
    ):
        with pytest.raises(ConfigError, match=word):
            LearnedOptimizer.load(
                cross / "methods" / label / "seed-0", network.parameters(), num_steps=5
            )


def test_a_rule_goes_on_from_another_run_of_it(cross: Path, metalearn: Commands) -> None:
    start = str(cross / "methods" / "network_random" / "seed-0")
    method = {"name": "learned_optimizer", "rule": {"name": "adafactor_mlp"}, "start": start}
    file = write(
        metalearn.folder, "goes_on", method=method, run={"meta_steps": 0, "executor": "vmap"}
    )
    assert metalearn("train", file, "--out", "goes_on").code == 0
    torch.testing.assert_close(
        ml.load_run(metalearn.folder / "goes_on").state.meta, ml.load_run(start).state.meta
    )


def test_starts_that_cannot_be_are_refused(cross: Path, metalearn: Commands) -> None:
    maml = str(cross / "methods" / "maml" / "seed-0")
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"name": "tuned_adam", "init": "meta"}, ("method.start", "is missing")),
        ({"name": "learned_optimizer", "init": "pretrained"}, ("method.start", "fine_tune")),
        # there is nothing to take
        ({"name": "learned_optimizer", "start": maml}, ("method.start", "another model")),
        ({"name": "learned_optimizer", "init": "nowhere"}, ("method.init",)),
        (
            {"name": "learned_optimizer", "rule": {"name": "lstm", "hiden": 3}},
            ("method.rule", "hidden"),
        ),
        ({"name": "learned_optimizer", "rule": {"name": "lstmm"}}, ("method.rule", "lstm")),
    ]
    for number, (method, words) in enumerate(cases):
        ended = metalearn(
            "train", write(metalearn.folder, f"bad{number}", method=method), "--out", "bad"
        )
        refused(ended, *words)
    assert not (metalearn.folder / "bad").exists()
