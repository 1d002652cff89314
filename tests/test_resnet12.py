"""ResNet-12: parameters as published, the same numbers as torch's layers, DropBlock."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from metalearn import noise
from metalearn.algorithms import MAML
from metalearn.errors import ConfigError
from metalearn.executors import executor
from metalearn.models import ResNet12
from metalearn.models.resnet12 import drop_blocks
from metalearn.rng import fold_in, normal
from metalearn.types import EpisodeSpec, Params

F64, KEY = torch.float64, fold_in(0, "resnet12")
SPEC = EpisodeSpec("classification", 3, 1, 2, (3, 16, 16), 3, 8, dtype=F64)
SMALL = ResNet12(widths=(4, 5, 6, 7), drop=0.0)


def test_the_published_number_of_parameters() -> None:
    """12,424,320 before the head: the network of Lee et al. 2019 (drop and block have none)."""
    with torch.device("meta"):
        params = ResNet12().build(EpisodeSpec("classification", 5, 1, 1, (3, 84, 84), 5, 9)).init
    count = sum(x.numel() for name, x in params(KEY).items() if not name.startswith("head."))
    assert count == 12_424_320


def by_torch(params: Params, x: torch.Tensor) -> torch.Tensor:
    """The features by torch's convolution, batch normalisation and pooling."""

    def part(z: torch.Tensor, name: str) -> torch.Tensor:
        weight = params[f"{name}.conv.weight"]
        z = F.conv2d(z, weight, padding=weight.shape[-1] // 2)
        gain, shift = params[f"{name}.norm.weight"], params[f"{name}.norm.bias"]
        return F.batch_norm(z, None, None, gain, shift, training=True)

    for block in range(4):
        z = x
        for place in range(3):
            z = part(z, f"blocks.{block}.convs.{place}")
            z = F.leaky_relu(z, 0.1) if place < 2 else z
        x = F.max_pool2d(F.leaky_relu(z + part(x, f"blocks.{block}.shortcut"), 0.1), 2)
    return x.mean((2, 3))


def test_features_are_those_of_torch() -> None:
    learner = SMALL.build(SPEC)
    params, x = learner.init(KEY), normal(KEY, (6, 3, 16, 16), F64)
    torch.testing.assert_close(learner.features(params, x), by_torch(params, x))
    flat = SMALL.model_copy(update={"flatten": True}).build(SPEC)
    assert flat.features(flat.init(KEY), x).shape == (6, 7)
    with pytest.raises(ConfigError, match="at least 16 x 16"):
        SMALL.build(EpisodeSpec("classification", 3, 1, 2, (3, 12, 12), 3, 8))


@pytest.mark.parametrize("norm", ["none", "support", "support_plus_one", "running", "query_batch"])
def test_every_policy_and_gradients_over_tasks(norm: str) -> None:
    from small import gap

    from metalearn.types import Batch, Episode

    learner = SMALL.model_copy(update={"norm": norm}).build(SPEC)
    method = MAML(inner_lr=0.1).build(learner, SPEC)
    x, y = normal(fold_in(KEY, 1), (2, 9, 3, 16, 16), F64), torch.arange(9).expand(2, 9) % 3
    info = {"key": torch.arange(2), "step": torch.zeros(2, dtype=F64)}
    tasks = Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]), info)
    state = method.init(KEY)
    vmap, loop = (executor.make_step(method, name)(state, tasks)[0] for name in ("vmap", "loop"))
    assert gap(vmap.meta, loop.meta) < 1e-9


def test_drop_block_makes_squares_and_keeps_the_mean() -> None:
    x = torch.ones(64, 10, 10, 8, dtype=F64)
    with noise.noise_from(KEY):
        dropped = drop_blocks(x, 0.1, 5)
    zeros = dropped == 0
    assert 0.05 < zeros.double().mean() < 0.15
    torch.testing.assert_close(dropped.mean(), torch.ones((), dtype=F64))
    zero = zeros.permute(0, 3, 1, 2).double()
    whole = F.pad((F.avg_pool2d(zero, 5, 1) > 0.999).double(), [4] * 4)
    assert torch.equal(F.max_pool2d(whole, 5, 1), zero)


def test_noise_is_drawn_in_training_alone() -> None:
    learner = ResNet12(widths=(4, 4, 4, 4), drop=0.3, block=2).build(SPEC)
    params, x = learner.init(KEY), normal(KEY, (6, 3, 16, 16), F64)
    assert learner.draws_noise
    plain = learner.features(params, x)
    with noise.noise_from(KEY):
        first = learner.features(params, x)
    with noise.noise_from(KEY):
        again = learner.features(params, x)
    assert torch.equal(first, again) and not torch.equal(first, plain)
