"""Problems so small that a test can afford the compiler, and what tests of executors share."""

from __future__ import annotations

from typing import Any

import torch

from metalearn.algorithms import MAML
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in, uniform
from metalearn.tasks import Sinusoid
from metalearn.tasks.images import ImageSource
from metalearn.tree import norm, sub
from metalearn.types import EpisodeSpec

F64 = torch.float64
SOURCE = Sinusoid(shots=5, queries=4).build(dtype=F64)


def tiny(**options: Any) -> Any:
    """MAML on a sinusoid with six hidden units: what the real compiler can do in a few seconds."""
    return MAML(**{"inner_lr": 0.1, **options}).build(
        MLP(sizes=(6,)).build(SOURCE.spec), SOURCE.spec
    )


def pictures(dtype: torch.dtype = F64, classes: int = 8) -> Any:
    spec = EpisodeSpec("classification", 3, 1, 2, (1, 16, 16), 3, classes, dtype=dtype)
    shape = (classes, 6, 1, 16, 16)
    pool = (255 * uniform(fold_in(5, "pool"), shape)).to(torch.uint8)
    return ImageSource(pool, spec)


def conv_task(inner_steps: int, dtype: torch.dtype = F64) -> Any:
    source = pictures(dtype)
    learner = Conv4(filters=8, downsample="pool").build(source.spec)
    return source, MAML(inner_steps=inner_steps, inner_lr=0.1).build(learner, source.spec)


def gap(a: Any, b: Any) -> float:
    return float(norm(sub(a, b)) / norm(b))
