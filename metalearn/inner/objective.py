"""The loss that an inner loop descends."""

from __future__ import annotations

from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adapt import Loss
from metalearn.losses import criterion
from metalearn.types import Batch, EpisodeSpec, Learner, Params


def support_loss(learner: Learner, spec: EpisodeSpec) -> Loss:
    """Loss of the learner's outputs on a batch: (params, batch, step) -> []."""
    if learner.outputs != spec.outputs:
        text = f"has {learner.outputs} outputs, the task needs {spec.outputs}"
        raise ConfigError(("model", text))
    loss_of = criterion(spec)

    def loss(params: Params, batch: Batch, step: int) -> Tensor:
        return loss_of(learner.apply(params, batch.x), batch.y)

    return loss
