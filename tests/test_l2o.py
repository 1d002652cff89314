"""`metalearn l2o`: hand-made rules against torch's, tuning and its edges, Adam's steps, the command
from end to end."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Commands
from torch import Tensor

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.baselines import BASELINES, nadamw, nag, rmsprop
from metalearn.inner.rules import make_schedule, sgd
from metalearn.l2o import tuning
from metalearn.l2o.command import L2OOptions, _other
from metalearn.l2o.measure import Losses, over_rates, over_tasks, overhead, problems
from metalearn.l2o.rows import RuleRuns, differences, row
from metalearn.l2o.table import _table
from metalearn.learned_optimizers.inner_run import optimizee
from metalearn.models import MLP, Own
from metalearn.rng import fold_in
from metalearn.tasks import Digits, Quadratics
from metalearn.types import Batch

F64 = torch.float64
KEY = fold_in(1, "l2o")


def target_of(source: Any, model: Any, batch: int | None = None) -> Any:
    return optimizee(model.build(source.spec), source.spec, batch)


SOURCE = Quadratics(dims=3).build(dtype=F64)
TARGET = target_of(SOURCE, Own())
GIVEN = problems(SOURCE, KEY, 6, 0, 20, 0)


def path_of(rule: Any, steps: int) -> list[Tensor]:
    """Points of a rule on (x - 1)^2 summed, from 0, 3."""
    batch = Batch(torch.zeros(1), torch.zeros(1))
    start = {"x": torch.tensor([0.0, 3.0], dtype=F64)}
    found = adapt(lambda p, b, s: (p["x"] - 1).square().sum(), start, rule, batch, steps)
    return [point["x"] for point in found.points]


def path_of_torch(make: Any, steps: int) -> list[Tensor]:
    x = torch.tensor([0.0, 3.0], dtype=F64, requires_grad=True)
    made, points = make([x]), [x.detach().clone()]
    for _ in range(steps):
        made.zero_grad()
        (x - 1).square().sum().backward()
        made.step()
        points.append(x.detach().clone())
    return points


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (nag(0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
        (rmsprop(0.05), lambda p: torch.optim.RMSprop(p, lr=0.05)),
        (BASELINES["momentum"](0.05, None), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (BASELINES["adam"](0.05, None), lambda p: torch.optim.Adam(p, lr=0.05)),
        (BASELINES["sgd"](0.05, None), lambda p: torch.optim.SGD(p, lr=0.05)),
    ],
)
def test_hand_made_rules_are_torchs(rule: Any, make: Any) -> None:
    for mine, theirs in zip(path_of(rule, 7), path_of_torch(make, 7), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_nadamw_by_hand() -> None:
    """Two steps by the formula: g = 2 (x - 1), weight decay 0.1."""
    x, points = torch.tensor([0.0, 3.0], dtype=F64), []
    m, v = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    for t in (1, 2):
        g = 2 * (x - 1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        x = x - 0.05 * (ahead / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + 0.1 * x)
        points.append(x)
    for mine, theirs in zip(path_of(nadamw(0.05, weight_decay=0.1), 2)[1:], points, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_a_cosine_ends_at_zero_and_a_grid_runs_side_by_side(name: str) -> None:
    last = path_of(BASELINES[name](0.01, make_schedule("cosine", 4)), 6)
    assert torch.equal(last[5], last[6])
    assert torch.equal(last[4], last[5])
    assert not torch.equal(last[2], last[3])
    rates = torch.tensor([0.01, 0.1], dtype=F64)
    grid = over_rates(TARGET, tuning.make_rule(name, "cosine", 8), rates, GIVEN, (0, 8))
    for place, rate in enumerate(rates):
        alone = over_tasks(TARGET, tuning.make_rule(name, "cosine", 8)(float(rate)), GIVEN, (0, 8))
        torch.testing.assert_close(grid.train[place], alone.train, rtol=1e-9, atol=1e-12)


def test_the_best_rate_of_every_point_is_found_and_used() -> None:
    found = tuning.tune(TARGET, GIVEN, "sgd", "constant", (2, 20))
    rates = torch.tensor(tuning.GRID, dtype=F64)
    means = over_rates(TARGET, lambda rate: sgd(rate), rates, GIVEN, (2, 20)).train.mean(1)
    for place, point in enumerate((2, 20)):
        best = int(means[:, place].nan_to_num(nan=torch.inf).argmin())
        assert found.rates[point] == tuning.GRID[best]
    fresh = problems(SOURCE, fold_in(2, "test"), 5, 0, 20, 0)
    there = tuning.measure_baseline(TARGET, fresh, found, (0, 2, 20))
    for place, point in ((1, 2), (2, 20)):
        alone = over_tasks(TARGET, sgd(found.rates[point]), fresh, (point,))
        torch.testing.assert_close(there.train[:, place], alone.train[:, 0])
    torch.testing.assert_close(
        there.train[:, 0], over_tasks(TARGET, sgd(0.1), fresh, (0,)).train[:, 0]
    )


def test_a_best_rate_on_an_edge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "GRID", tuple(rate for rate in tuning.GRID if rate < 0.02))
    with pytest.raises(ConfigError, match=r"sgd .constant. at step 20 is 0.01, an edge"):
        tuning.tune(TARGET, GIVEN, "sgd", "constant", (20,))


def test_the_grid_is_half_decades_from_a_millionth_to_a_hundred() -> None:
    assert len(tuning.GRID) == 17
    assert tuning.GRID[0] == pytest.approx(1e-6)
    assert tuning.GRID[-1] == pytest.approx(100)
    assert all(
        high / low == pytest.approx(10**0.5) for low, high in itertools.pairwise(tuning.GRID)
    )


def test_steps_that_the_best_rates_need() -> None:
    """Two rates: one falls fast and stops, the other slowly and far; a run that is not finite
    counts for nothing."""
    nan = float("nan")
    train = torch.tensor([[[8.0, 2, 2, 2]], [[8.0, 6, 4, 1]], [[8.0, nan, nan, nan]]])  # [L, T, P]
    found = tuning.levels(Losses(train, train, train), (0, 10, 20, 30))
    assert found.losses == [8, 2, 2, 1]
    expected = [0, 0, 5, 10, 23, 30, None]
    assert [found.steps_to(loss) for loss in (9.0, 8.0, 5.0, 2.0, 1.75, 1.0, 0.5)] == expected


@pytest.mark.parametrize("batch", [None, 8])
def test_adam_needs_no_more_than_its_own_steps_for_its_own_loss(batch: int | None) -> None:
    """On the tasks and with the losses of the rows: nothing lags, and the best rate is one of those
    that are tried."""
    source = SOURCE if batch is None else Digits(ways=3, shots=6, queries=1).build()
    target = TARGET if batch is None else target_of(source, MLP(sizes=(4,)), batch)
    given = problems(source, KEY, 3, 0, 40, 0)
    seen = tuple(range(0, 81, 4))
    rule = tuning.make_rule("adam", "constant", 80)
    found = tuning.levels(over_rates(target, rule, tuning.grid(given), given, seen), seen)
    mine = over_tasks(target, rule(tuning.GRID[11]), given, (40,)).train
    steps = found.steps_to(float(mine.mean()))
    assert steps is not None and 0 < steps <= 40


def test_the_best_rate_of_every_task() -> None:
    train = torch.tensor([[[3.0], [float("nan")]], [[2.0], [5.0]]])  # [L, T, P]
    best = tuning.best_of_each(Losses(train, train + 10, train))
    assert best.train.tolist() == [[2.0], [5.0]] and best.held_out.tolist() == [[12.0], [15.0]]


def test_rows_hold_means_intervals_and_what_diverged() -> None:
    train = torch.tensor([[[1.0, 0.5], [3.0, 0.7]], [[1.0, 0.1], [3.0, 90.0]]])  # [I, T, P]
    other = train.clone()
    other[..., 1] = 2.0
    losses = [Losses(train, train, train), Losses(other, other, other)]
    given = RuleRuns("mine", "learned", losses, overhead_of(), {})
    found = row(given, (0, 5))
    assert found["loss"] == pytest.approx([2.0, (91.3 / 4 + 2) / 2])
    assert found["diverged"] == [0.0, 1 / 8]
    assert found["loss_by_seed"] == [pytest.approx([2.0, 91.3 / 4]), pytest.approx([2.0, 2.0])]
    base = RuleRuns("sgd", "baseline", [Losses(other, other, other)], overhead_of(), {})
    gap = differences(given, [base], 1)[0]
    assert gap["difference"] == pytest.approx(found["loss"][1] - 2.0)
    assert (gap["a"], gap["b"]) == ("mine", "sgd")


def overhead_of() -> Any:
    return overhead(TARGET, sgd(0.1), GIVEN)


def test_a_step_is_priced_with_its_rule() -> None:
    cheap, dear = (
        overhead(TARGET, BASELINES[name](0.1, None), GIVEN).flops for name in ("sgd", "nadamw")
    )
    assert cheap is not None and dear is not None and 20 < cheap < dear
    source = Digits(shots=2, queries=1).build()
    found = overhead(
        target_of(source, MLP(sizes=(4,))), sgd(0.1), problems(source, KEY, 2, 0, 1, 0)
    ).flops
    # forward, and two products back but none to the pixels
    by_hand = 3 * 2 * 20 * (64 * 4 + 4 * 10) - 2 * 20 * 64 * 4
    assert found is not None and 1.0 < found / by_hand < 1.2


def test_the_command_from_end_to_end(metalearn: Commands) -> None:
    words = (
        "run.meta_steps=2",
        "run.seeds=[0,1]",
        "run.tasks_per_step=2",
        "run.executor=vmap",
        "task.dims=2",
    )
    words += (
        "run.validate.every=null",
        "evaluate.checkpoint=last",
        "evaluate.episodes=4",
        "evaluate.steps=[0,10,20]",
    )
    words += ("evaluate.headline_step=20", "method.rule.hidden=2", "method.horizon.steps=20")
    options = (
        "--inner-seeds",
        "2",
        "--tuning-tasks",
        "20",
        "--also",
        "task.draws=normal task.dims=3",
        "--out",
        "out",
    )
    done = metalearn("l2o", "l2o_quadratics", *words, *options)
    assert done.code == 0, done.err
    found = json.loads((metalearn.folder / "out" / "optimizers.json").read_text())
    expected = ["as trained", "task.draws=normal task.dims=3"]
    assert [problem["name"] for problem in found["problems"]] == expected
    for problem in found["problems"]:
        assert len(problem["rows"]) == 14 and len(problem["paired"]) == 12
        assert all(len(line["loss"]) == 3 for line in problem["rows"])
    text = (metalearn.folder / "out" / "optimizers.md").read_text()
    assert "| lstm |" in text and "| adam, per task |" in text
    assert Path(metalearn.folder / "out" / "optimizers.svg").read_text().startswith("<?xml")
    point = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = ml.LearnedOptimizer.load(
        metalearn.folder / "out" / "seeds" / "seed-1", [point], num_steps=3
    )
    point.square().sum().backward()
    optimizer.step()
    assert point.isfinite().all() and (point != torch.tensor([3.0, -2.0])).any()
    before = {
        path: path.stat().st_mtime_ns for path in (metalearn.folder / "out" / "seeds").rglob("*.*")
    }
    again = metalearn("l2o", "l2o_quadratics", *words, *options)  # trained seeds are left alone
    assert before and before == {path: path.stat().st_mtime_ns for path in before}
    assert again.code == 0
    assert json.loads((metalearn.folder / "out" / "optimizers.json").read_text())["seeds"] == [0, 1]


def test_tuned_adam_has_a_price_beside_every_row() -> None:
    """Twice the steps, at a fifth of the FLOPs and half of the seconds of each: 0.4 and 1 times the
    row's own."""
    half = {f"loss_ci95_{over}": [None] * 2 for over in ("tasks", "seeds")}
    shared = {"loss": [1.0, 0.1], **half, "diverged": [0, 0]}
    cheap, dear = (
        {**shared, "flops_per_step": flops, "seconds_per_step": seconds}
        for flops, seconds in ((100, 1e-3), (500, 2e-3))
    )
    adam = {"label": "adam", "kind": "baseline", **cheap}
    mine = {"label": "lstm", "kind": "learned", **dear}
    rows = [
        {**adam, "adam_steps": {"steps": 20, "within": 80}},
        {**mine, "adam_steps": {"steps": 40, "within": 80}},
        {**mine, "label": "far", "adam_steps": {"steps": None, "within": 80}},
    ]
    lines = _table(rows, (0, 20), 20).splitlines()
    at = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in lines}
    first = at["optimizer"].index("its FLOPs")
    expected = [["20", "1x", "1x"], ["40", "0.4x", "1x"], ["over 80", "", ""]]
    assert [at[name][first - 1 : first + 2] for name in ("adam", "lstm", "far")] == expected


def test_the_command_refuses_what_it_cannot_do(metalearn: Commands) -> None:
    for words, hint in (
        (("maml_sinusoid",), "learn_optimizer"),
        (("l2o_quadratics", "--also", "run.seeds=[1]"), "overrides of task and model"),
        (("l2o_quadratics", "evaluate.steps=[20,100]"), "start with 0"),
        (
            ("l2o_quadratics", "evaluate.steps=[0]", "evaluate.headline_step=0"),
            "start with 0 and contain",
        ),
        (("l2o_mlp", "--also", "task.shots=500"), "at most 104"),
        (
            ("l2o_mlp", "method.rule.name=learned_rates", "--also", "model.sizes=[40]"),
            "separate parameters",
        ),
    ):
        done = metalearn("l2o", *words, "--out", "no")
        assert done.code == 2 and hint in done.err, (words, done.err)
        assert not (metalearn.folder / "no").exists(), words
    done = metalearn(
        "l2o",
        "l2o_quadratics",
        "evaluate.steps=[20,100]",
        "--also",
        "run.seeds=[1]",
        "--also",
        "oops",
    )
    assert done.code == 2
    assert all(hint in done.err for hint in ("start with 0", "run.seeds=[1]", "oops"))


def test_the_other_networks_of_make_are_problems_that_there_are() -> None:
    """A comma inside a list belongs to its value."""
    text = (Path(__file__).parents[1] / "Makefile").read_text().replace("\\\n", "")
    line = next(line for line in text.splitlines() if line.startswith("OTHER_NETWORKS"))
    options = L2OOptions(
        "l2o_mlp", (), None, tuple(shlex.split(line.partition(":=")[2])[1::2]), 1, 2
    )
    made = [_other(options, one).model for one in options.also]
    expected = [((40,), "sigmoid"), ((20, 20), "sigmoid"), ((20,), "relu")]
    assert [(model.sizes, model.activation) for model in made] == expected
    both = _other(options, "model.sizes=[20,20] task.shots=5")
    assert both.model.sizes == (20, 20) and both.task.shots == 5
