"""Wide residual networks: parameters as published, the same numbers as torch's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn import noise
from metalearn.errors import ConfigError
from metalearn.models import WideResNet
from metalearn.rng import fold_in, normal
from metalearn.types import EpisodeSpec, Params

F64, KEY = torch.float64, fold_in(0, "wide")
SPEC = EpisodeSpec("classification", 3, 1, 2, (3, 16, 16), 3, 8, dtype=F64)
SMALL = WideResNet(depth=16, width=1)


def test_the_published_number_of_parameters() -> None:
    """36.5 million with the head of CIFAR-10 (table 4 of the paper)."""
    spec = EpisodeSpec("classification", 10, 1, 1, (3, 32, 32), 10, 64)
    with torch.device("meta"):
        init = WideResNet().build(spec).init
    assert sum(x.numel() for x in init(KEY).values()) == 36_479_194


def by_torch(params: Params, x: Tensor) -> Tensor:
    def active(z: Tensor, name: str) -> Tensor:
        gain, shift = params[f"{name}.weight"], params[f"{name}.bias"]
        return F.relu(F.batch_norm(z, None, None, gain, shift, training=True))

    z = F.conv2d(x, params["stem.weight"], padding=1)
    for block in range(6):
        stride, name = 2 if block in (2, 4) else 1, f"blocks.{block}"
        a = active(z, f"{name}.first.norm")
        h = F.conv2d(a, params[f"{name}.first.conv.weight"], stride=stride, padding=1)
        h = active(h, f"{name}.second.norm")
        h = F.conv2d(h, params[f"{name}.second.conv.weight"], padding=1)
        shortcut = params.get(f"{name}.shortcut.weight")
        z = h + (z if shortcut is None else F.conv2d(a, shortcut, stride=stride))
    return active(z, "norm").mean((2, 3))


def test_features_are_those_of_torch() -> None:
    learner = SMALL.build(SPEC)
    params, x = learner.init(KEY), normal(KEY, (6, 3, 16, 16), F64)
    torch.testing.assert_close(learner.features(params, x), by_torch(params, x))


def test_what_is_no_wide_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4 x 4"):
        SMALL.build(EpisodeSpec("classification", 3, 1, 2, (3, 2, 16), 3, 8))
    with pytest.raises(ValueError, match="6 n \\+ 4"):
        WideResNet(depth=18)


def test_noise_is_drawn_in_training_alone() -> None:
    learner = WideResNet(depth=10, width=1, drop=0.4).build(SPEC)
    params, x = learner.init(KEY), normal(KEY, (4, 3, 16, 16), F64)
    with noise.noise_from(KEY):
        dropped = learner.features(params, x)
    assert learner.draws_noise and not torch.equal(dropped, learner.features(params, x))
