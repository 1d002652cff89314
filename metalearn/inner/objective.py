"""The loss that an inner loop descends."""

from __future__ import annotations

from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adapt import Loss
from metalearn.losses import Criterion, criterion
from metalearn.padding import current, padded, present_in, without_absent
from metalearn.types import Batch, EpisodeSpec, Learner, Params


def support_loss(learner: Learner, spec: EpisodeSpec) -> Loss:
    """Loss of the learner's outputs on a batch: (params, batch, step) -> [].

    >>> source = ml.tasks.Sinusoid(shots=10).build()
    >>> learner = ml.models.MLP(sizes=(8,)).build(source.spec)
    >>> loss = ml.inner.support_loss(learner, source.spec)
    >>> support = ml.tree.take(source.sample(ml.fold_in(0, "task"), 1), 0).support
    >>> path = ml.inner.adapt(loss, learner.init(ml.fold_in(0)), ml.inner.sgd(0.01), support, 5)
    >>> len(path.points), bool(path.losses[-1] < path.losses[0])
    (6, True)
    """
    if learner.outputs != spec.outputs:
        text = f"has {learner.outputs} outputs, the task needs {spec.outputs}"
        raise ConfigError(("model", text))
    loss_of = criterion(spec)

    def loss(params: Params, batch: Batch, step: int) -> Tensor:
        with padded(batch.weight, present=current().present):
            return weighted_loss(loss_of, learner.apply(params, batch.x), batch)

    return loss


def weighted_loss(loss_of: Criterion, outputs: Tensor, batch: Batch) -> Tensor:
    """`loss_of` by the weights of the batch, over the classes of the task's support set.

    These are the classes of the open scope (`padding.padded`), else those of the batch."""
    present = current().present
    if present is None:
        present = present_in(batch, outputs.shape[-1])
    return loss_of(without_absent(outputs, present), batch.y, batch.weight)
