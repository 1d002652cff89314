"""FLOPs of a meta-step and the rate of this machine: a bound for all engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metalearn.bench.engines import imaml, in_context, l2o, r2d2
from metalearn.bench.engines.engine import Engine
from metalearn.bench.engines.plain import reference
from metalearn.bench.problem import Problem, synchronise
from metalearn.types import Episode, Params

LIMIT = "plain convolution"


def reference_and_flops(problem: Problem) -> tuple[Params, int]:
    """Return the reference gradient in float64, and the FLOPs of its products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        expected = _reference(problem)
    return expected, int(counter.get_total_flops())


def _reference(problem: Problem) -> Params:
    families: dict[str, Callable[[Any, Episode], Params]] = {
        "l2o": l2o.reference,
        "in_context": in_context.reference,
        "r2d2": r2d2.reference,
        "imaml": imaml.reference,
    }
    return families.get(problem.workload.family, reference)(problem, problem.check)


@dataclass(frozen=True)
class Plain:
    """A single convolution, and its operations per step."""

    engine: Engine
    flops: int


def convolution(problem: Problem) -> Plain:
    """Return the second block's convolution over the support images of all tasks.

    Shared weights, channels last, no gradient."""
    work = problem.workload
    batch, filters, side = work.tasks * work.ways * work.shots, work.filters, work.x_shape[1] // 2
    layout = torch.channels_last
    x = torch.rand(batch, filters, side, side, device=problem.device).to(memory_format=layout)
    weight = torch.rand(filters, filters, 3, 3, device=problem.device).to(memory_format=layout)

    def step() -> None:
        with torch.no_grad():
            F.conv2d(x, weight, padding=1)

    step()
    return Plain(
        Engine(step, None, lambda: synchronise(problem.device)),
        2 * batch * side**2 * filters**2 * 9,
    )
