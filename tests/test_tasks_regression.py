"""Harmonics and sinusoids with lines: closed forms from the tasks' parameters, and moments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.config.experiment import parse
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.tasks import Harmonics, SinusoidLine
from metalearn.types import Episode

KEY = fold_in(0, "regression")
F64 = torch.float64
MANY = 20_000


def sampled(task: Any, count: int = MANY, split: str = "train") -> Episode:
    episode: Episode = task.build(split, dtype=F64).sample(KEY, count)
    return episode


def columns(episode: Episode, *names: str) -> list[Tensor]:
    """Parameters of the tasks, [T, 1, 1] each."""
    return [episode.info[name][:, None, None] for name in names]


def harmonic(x: Tensor, episode: Episode) -> Tensor:
    w, b_1, b_2 = columns(episode, "frequency", "phase_1", "phase_2")
    a_1, a_2 = columns(episode, "amplitude_1", "amplitude_2")
    return a_1 * torch.sin(w * x + b_1) + a_2 * torch.sin(2 * w * x + b_2)


def sinusoid_or_line(x: Tensor, episode: Episode) -> Tensor:
    amplitude, phase, slope, intercept = columns(
        episode, "amplitude", "phase", "slope", "intercept"
    )
    is_line = episode.info["source"][:, None, None] == 1
    return torch.where(is_line, slope * x + intercept, amplitude * torch.sin(x - phase))


@pytest.mark.parametrize(
    ("task", "function"),
    [(Harmonics(shots=6), harmonic), (SinusoidLine(shots=6, noise=0), sinusoid_or_line)],
)
def test_values_are_those_of_the_task_s_function(task: Any, function: Any) -> None:
    episode = sampled(task, 200)
    for part in (episode.support, episode.query):
        torch.testing.assert_close(part.y, function(part.x, episode), rtol=1e-12, atol=1e-12)
    assert not torch.equal(episode.support.x, episode.query.x[:, :6])


@pytest.mark.parametrize("task", [Harmonics(noise=0.5), SinusoidLine(noise=0.5)])
def test_noise_is_normal_and_leaves_the_task_as_it_is(task: Any) -> None:
    plain = task.model_copy(update={"noise": 0.0})
    noisy, exact = sampled(task, 5000), sampled(plain, 5000)
    assert torch.equal(noisy.support.x, exact.support.x)
    noise = torch.cat([noisy.support.y - exact.support.y, noisy.query.y - exact.query.y], 1)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert noise.unique().numel() == noise.numel()


def is_uniform(values: Tensor, low: float, high: float) -> bool:
    """In the range, and with the moments of a uniform distribution to five standard errors."""
    width = high - low
    inside = bool((values >= low).all() and (values < high).all())
    mean, square = values.mean() - (low + high) / 2, (values - (low + high) / 2).square().mean()
    error = 5 / math.sqrt(len(values))
    near = abs(float(mean)) < error * width / math.sqrt(12)
    return inside and near and abs(float(square) * 12 / width**2 - 1) < error


def test_harmonics_have_the_moments_of_their_distributions() -> None:
    episode, error = sampled(Harmonics()), 5 / math.sqrt(MANY)
    info = episode.info
    assert is_uniform(info["frequency"], 5, 7) and is_uniform(info["centre"], -4, 4)
    assert all(is_uniform(info[name], 0, 2 * math.pi) for name in ("phase_1", "phase_2"))
    for values in (info["amplitude_1"], info["amplitude_2"]):
        assert abs(float(values.mean())) < error and abs(float(values.var()) - 1) < 2 * error
    around = episode.support.x.squeeze(-1) - info["centre"].unsqueeze(-1)
    assert abs(float(around.mean())) < error and abs(float(around.var()) - 1) < 2 * error
    # the variance of a_1 sin + a_2 sin of independent phases, E[a^2] / 2 each
    assert float(episode.support.y.var()) == pytest.approx(1, rel=0.05)
    names = ("frequency", "phase_1", "phase_2", "centre", "amplitude_1", "amplitude_2")
    correlations = torch.corrcoef(torch.stack([info[name] for name in names])).abs()
    assert float((correlations - torch.eye(6, dtype=F64)).max()) < error


def test_sinusoids_and_lines_are_equally_likely_with_their_ranges() -> None:
    episode = sampled(SinusoidLine())
    info, line = episode.info, episode.info["source"] == 1
    assert abs(float(line.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(MANY)
    assert is_uniform(info["amplitude"][~line], 0.1, 5)
    assert is_uniform(info["phase"][~line], 0, math.pi)
    assert all(is_uniform(info[name][line], -3, 3) for name in ("slope", "intercept"))
    assert not any(info[name][line].any() for name in ("amplitude", "phase"))
    assert not any(info[name][~line].any() for name in ("slope", "intercept"))
    assert is_uniform(episode.support.x.flatten(), -5, 5)


@pytest.mark.parametrize(("lines", "expected"), [(0, {0}), (1, {1}), (0.5, {0, 1})])
def test_the_fraction_of_lines_can_be_set(lines: float, expected: set[int]) -> None:
    info = sampled(SinusoidLine(lines=lines), 50).info
    assert set(info["source"].tolist()) == expected


@pytest.mark.parametrize("task", [Harmonics(), SinusoidLine()])
def test_splits_have_different_tasks_and_examples_one_point_of_each(task: Any) -> None:
    train, test = sampled(task, 8), sampled(task, 8, "test")
    assert not torch.isclose(train.support.x, test.support.x).any()
    source = task.build(dtype=F64)
    batch = source.examples(KEY, 5000)
    assert batch.x.shape == batch.y.shape == (5000, 1)
    assert batch.x.unique().numel() == 5000
    assert torch.equal(batch.x[:8], train.support.x[:, 0])


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Harmonics, {"frequency": (7, 5), "centre": (1, 0)}, "frequency, centre: a range"),
        (Harmonics, {"spread": 0}, "spread"),
        (SinusoidLine, {"slope": (1, -1)}, "slope: a range"),
        (SinusoidLine, {"lines": 1.5}, "lines"),
    ],
)
def test_wrong_ranges_are_refused(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


def test_a_result_has_the_scores_of_each_kind(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "experiment": "kinds",
        "task": {"source": "sinusoid_line", "queries": 4},
        "model": {"name": "mlp", "sizes": [4]},
        "method": {"name": "maml"},
        "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {"episodes": 12, "steps": [0, 1]},
    }
    result = run_one(parse(data).experiments[0], tmp_path)
    scores = result["by_source"]
    assert list(scores) == ["sinusoid", "line"]
    assert sum(part["episodes"] for part in scores.values()) == 12
    assert all(part["episodes"] > 0 and len(part["loss"]) == 2 for part in scores.values())
