"""A workload as every engine receives it: tasks, method, initialization, check episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.algorithms import ANIL, MAML, ProtoNet
from metalearn.bench.workloads import Workload
from metalearn.models import MLP, Conv4, ResNet12
from metalearn.models.norm import Policy
from metalearn.rng import fold_in
from metalearn.tasks import Sinusoid
from metalearn.tasks.images import ImageSource
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Method, Params

OUTER_LR = 1e-3  # Adam, the same on every side
CLASSES, EXAMPLES = 1028, 20  # of the random images: the training set of Omniglot
SMALL_CLASSES, SMALL_EXAMPLES = 64, 30  # of the random images of 84 x 84
STEADY = 30.0  # factor of the initial convolution weights; see Problem.start
CHECK = 1_000_000  # the number of the batch on which gradients are compared
READY = 4  # batches of episodes sampled in advance for engines without a sampler


@dataclass(frozen=True)
class Problem:
    """One workload on one device."""

    workload: Workload
    device: str

    @cached_property
    def source(self) -> Any:
        """Our task source.

        Images are random bytes in the pool of an ImageSource: time does not depend on them."""
        work = self.workload
        if work.regression:
            return Sinusoid(shots=work.shots, queries=work.queries).build(device=self.device)
        pool = torch.from_numpy(images(work))
        spec = EpisodeSpec(
            kind="classification",
            ways=work.ways,
            shots=work.shots,
            queries=work.queries,
            x_shape=work.x_shape,
            outputs=work.ways,
            num_classes=len(pool),
            device=self.device,
        )
        return ImageSource(pool, spec)

    @cached_property
    def learner(self) -> Learner:
        work = self.workload
        if work.model == "mlp":
            return MLP(sizes=(40, 40)).build(self.source.spec)
        if work.model == "resnet12":
            a, b, c, d = (width * work.filters // 64 for width in (64, 160, 320, 640))
            return ResNet12(widths=(a, b, c, d), drop=0.0).build(self.source.spec)
        norm: Policy = "query_batch" if work.norm else "none"
        conv4 = Conv4(
            filters=work.filters, downsample=work.downsample, flatten=work.flatten, norm=norm
        )
        return conv4.build(self.source.spec)

    @cached_property
    def method(self) -> Method:
        work = self.workload
        if work.family == "proto_net":
            return ProtoNet().build(self.learner, self.source.spec)
        if work.family == "anil":
            anil = ANIL(inner_steps=work.inner_steps, inner_lr=work.inner_lr)
            return anil.build(self.learner, self.source.spec)
        kind = MAML(
            inner_steps=work.inner_steps, inner_lr=work.inner_lr, first_order=work.first_order
        )
        return kind.build(self.learner, self.source.spec)

    @cached_property
    def key(self) -> Key:
        """Every batch is a function of this and its number."""
        return fold_in(0, "bench", "train")

    @cached_property
    def start(self) -> Params:
        """The initial parameters of every engine, named as in our learner.

        Convolutions start STEADY times larger. The normalisation behind them cancels the factor,
        but an inner step then changes their direction STEADY^2 times less. With the usual
        initialization one step of lr 0.4 changes the first layer by many times its size, and five
        steps of float32 differ from float64 by a tenth or more in any package, which leaves nothing
        to compare. Time does not depend on it; first order stays far from second order."""
        params = self.learner.init(fold_in(0, "bench", "init"))
        return {
            name: value * STEADY if value.dim() == 4 else value for name, value in params.items()
        }

    def episodes(self, number: int) -> Episode:
        """Return batch `number` of `tasks` episodes: support x [T, N*K, *X], query x [T, M, *X]."""
        episodes: Episode = self.source.sample(fold_in(self.key, number), self.workload.tasks)
        return episodes

    @cached_property
    def check(self) -> Episode:
        """The episodes on which every engine's gradient is compared."""
        return self.episodes(CHECK)

    @cached_property
    def ready(self) -> list[Episode]:
        """Batches sampled in advance, used in turn by engines without a sampler.

        Sampling costs them no time."""
        return [self.episodes(number) for number in range(READY)]

    def waves(self) -> Episode:
        """Return sine waves from torch's own generator, all tasks at once.

        This is the sampler of the torch peers."""
        work = self.workload
        points = torch.rand(work.tasks, work.shots + work.queries, 1, device=self.device) * 10 - 5
        amplitude = torch.rand(work.tasks, 1, 1, device=self.device) * 4.9 + 0.1
        phase = torch.rand(work.tasks, 1, 1, device=self.device) * torch.pi
        y = amplitude * torch.sin(points - phase)
        k = work.shots
        return Episode(Batch(points[:, :k], y[:, :k]), Batch(points[:, k:], y[:, k:]), {})

    def draw(self, number: int) -> Episode:
        """Return a torch peer's data in step `number`: new waves, or a batch sampled in advance."""
        return self.waves() if self.workload.regression else self.ready[number % READY]


def images(work: Workload) -> Any:
    """Return random bytes [classes, examples, channels, H, W] uint8.

    There are fewer of 84 x 84, to save memory."""
    count = (CLASSES, EXAMPLES) if max(work.x_shape) <= 28 else (SMALL_CLASSES, SMALL_EXAMPLES)
    return np.random.default_rng(0).integers(0, 256, (*count, *work.x_shape), dtype=np.uint8)


def synchronise(device: str) -> None:
    """Wait until the device has finished all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def gap(gradient: Params, expected: Params) -> float:
    """Return the largest |value - expected| / |expected| over leaves, Euclidean, in float64.

    Infinite if one is not finite.

    A leaf counts with at least a hundredth of the largest one: the gradient of a bias before a
    normalisation is exactly zero, and a ratio of its own would be rounding over nothing."""
    if set(gradient) != set(expected):
        return math.inf
    sizes = {name: float(value.norm()) for name, value in expected.items()}
    floor = max(sizes.values()) / 100
    distances = [
        _distance(gradient[name], value) / max(sizes[name], floor)
        for name, value in expected.items()
    ]
    return max(distances) if all(map(math.isfinite, distances)) else math.inf


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    return float((a.detach().to("cpu", torch.float64) - b.to("cpu", torch.float64)).norm())
