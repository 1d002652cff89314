"""Losses and metrics of one task that support vmap and second derivatives.

Each takes (predictions, y, weight=None, batch_dims=0) and returns the mean over examples and
outputs: []. `weight` [B] is that of `Batch`: an example of weight 0 is padding and changes nothing.
The first `batch_dims` axes, the same in all three, are kept: [*L, B, ...] -> [*L]. Shapes that do
not match raise a ConfigError and are never broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.errors import ConfigError, did_you_mean
from metalearn.types import EpisodeSpec

BINS = 15  # of confidence, in calibration errors
Criterion = Callable[..., Tensor]  # (predictions, y, weight=None, batch_dims=0) -> []


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """[B] int64 -> [B, C]; torch's own one_hot does not run under vmap.

    >>> ml.losses.one_hot(torch.tensor([1, 0]), 2, torch.float32)
    tensor([[0., 1.],
            [1., 0.]])
    """
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(dtype)


def cross_entropy_each(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] of each label: [..., C], [...] -> [...], nats.

    >>> ml.losses.cross_entropy_each(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    return -torch.log_softmax(logits, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def cross_entropy(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Mean cross-entropy: [B, *Y, C], integer classes [B, *Y] -> [].

    >>> ml.losses.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor(4.)
    """
    return _mean(cross_entropy_each(logits, _classes(logits, y)), weight, batch_dims)


def squared_error(
    predictions: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Mean squared error: [B, *Y], [B, *Y] -> [].

    >>> ml.losses.squared_error(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))
    tensor(5.)
    """
    return _mean((predictions - _values(predictions, y)).square(), weight, batch_dims)


def huber(
    predictions: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Mean of d^2/2 where |d| < 1, else |d| - 1/2, d = prediction - y (Huber 1964, delta 1):
    [B, *Y], [B, *Y] -> [].

    >>> ml.losses.huber(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))  # (1/2 + 5/2) / 2
    tensor(1.5000)
    """
    size = (predictions - _values(predictions, y)).abs()
    # The clamped distance c gives both branches, c |d| - c^2 / 2, without a second branch to mask.
    near = size.clamp(max=1)
    return _mean(near * (size - near / 2), weight, batch_dims)


def binary_cross_entropy(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Mean of -y log s - (1 - y) log(1 - s), s = sigmoid(logits), for multi-label targets in 0..1:
    [B, *Y], [B, *Y] -> [].

    >>> ml.losses.binary_cross_entropy(torch.zeros(1, 3), torch.ones(1, 3)).exp()
    tensor(2.)
    """
    _same_shape(logits, y)
    return _mean(F.softplus(logits) - y * logits, weight, batch_dims)


def gaussian_nll(
    mean: Tensor,
    log_deviation: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    batch_dims: int = 0,
) -> Tensor:
    """Mean of -log N(y | mean, s^2), in nats a number: 3 x [B, *Y] -> [].

    log s + ((y - mean) / s)^2 / 2 + log(2 pi) / 2, s the standard deviation

    >>> y = torch.zeros(2, 1)
    >>> ml.losses.gaussian_nll(y, y, y)  # log(2 pi) / 2
    tensor(0.9189)
    """
    residual = (_values(mean, y) - mean) * torch.exp(-log_deviation)
    return _mean(
        log_deviation + residual.square() / 2 + math.log(2 * math.pi) / 2, weight, batch_dims
    )


def calibration_counts(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Counts by bins of confidence, the sum of which over batches gives their calibration error.

    [*L, B, *Y, C], [*L, B, *Y] -> [*L, BINS, 3]: labels, their confidence, and right ones.

    >>> counts = ml.losses.calibration_counts(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    >>> counts.sum(0)  # labels, their confidence, and right ones
    tensor([4., 2., 3.])
    """
    confidence, predicted = logits.softmax(-1).max(-1)  # [*L, B, *Y]
    right = (predicted == _classes(logits, y)).to(logits.dtype)
    labels = torch.ones_like(right)
    if weight is not None:
        labels = labels * weight.view(*weight.shape, *[1] * (right.dim() - weight.dim()))
    parts = torch.stack([labels, labels * confidence, labels * right], -1).flatten(
        batch_dims, -2
    )  # [*L, n, 3]
    bins = (confidence * BINS).long().clamp(0, BINS - 1).flatten(batch_dims)  # [*L, n]
    counts = parts.new_zeros(*parts.shape[:batch_dims], BINS, 3)
    return counts.scatter_add(batch_dims, bins.unsqueeze(-1).expand_as(parts), parts)


def calibration_error(counts: Tensor) -> Tensor:
    """sum over bins of |right - confidence| / labels, the expected calibration error (Guo et al.
    2017, arXiv:1706.04599, equation 3): [..., BINS, 3] -> [...].

    >>> counts = ml.losses.calibration_counts(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    >>> ml.losses.calibration_error(counts)  # half sure, right in three of four
    tensor(0.2500)
    """
    gap = (counts[..., 2] - counts[..., 1]).abs().sum(-1)
    return gap / counts[..., 0].sum(-1)


def calibration_floor(counts: Tensor) -> Tensor:
    """The expected calibration error of a perfectly calibrated predictor with these counts and
    mean confidences, which is above 0 and falls with the number of labels: [..., BINS, 3] -> [...].

    A bin of n labels with confidence p has the mean absolute deviation of a binomial: 2 k C(n, k)
    p^k (1 - p)^(n - k + 1), k = floor(n p) + 1 (De Moivre 1730; Diaconis & Zabell 1991, Statistical
    Science 6(3), equation 1.1).

    >>> counts = ml.losses.calibration_counts(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    >>> ml.losses.calibration_floor(counts)  # of 4 fair coins: 2 * 3 * 4 / 2**5 / 4
    tensor(0.1875)
    """
    number = counts[..., 0].double().round()
    p = (counts[..., 1].double() / number.clamp(min=1)).clamp(1e-12, 1 - 1e-12)
    k = (number * p).floor() + 1
    log_choices = (number + 1).lgamma() - (k + 1).lgamma() - (number - k + 1).lgamma()
    deviation = 2 * k * (log_choices + k * p.log() + (number - k + 1) * (1 - p).log()).exp()
    return (deviation.sum(-1) / number.sum(-1)).to(counts.dtype)


LOSSES: dict[str, Criterion] = {
    "cross_entropy": cross_entropy,
    "mse": squared_error,
    "huber": huber,
    "bce": binary_cross_entropy,
}
PROBABILITIES = ("bce",)  # losses that need targets in 0..1
Function = Callable[[Tensor, Tensor], Tensor]  # (predictions, y) -> each example's loss, or a mean
FUNCTIONS: dict[str, Function] = {}  # losses of other packages, by name: see `from_function`


def accuracy(
    logits: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
) -> Tensor:
    """Fraction of labels that are the largest output: [B, *Y, C], [B, *Y] -> [].

    >>> ml.losses.accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    return _mean((logits.argmax(-1) == _classes(logits, y)).to(logits.dtype), weight, batch_dims)


def mean_prediction(outputs: Tensor, classification: bool) -> Tensor:
    """The prediction of an ensemble from the outputs of its members: [R, ..., C] -> [..., C].

    Classes: the log of the mean of the softmax outputs. Regression: the mean output."""
    if not classification:
        return outputs.mean(0)
    return torch.log_softmax(outputs, -1).logsumexp(0) - math.log(len(outputs))


def criterion(spec: EpisodeSpec, name: str | None = None) -> Criterion:
    """The loss of the tasks, or one by name.

    By default cross_entropy for classes and mse for regression.

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> ml.losses.criterion(spec)(torch.zeros(2, 1), torch.ones(2, 1))
    tensor(1.)
    """
    name = spec.loss if name is None else name  # type: ignore[assignment]
    if name is None:
        return cross_entropy if spec.classification else squared_error
    if callable(name):
        return from_function(name, spec)
    check_name(name)
    if name in FUNCTIONS:
        return from_function(FUNCTIONS[name], spec)
    if (name == "cross_entropy") != spec.classification:
        text = f"{name} does not fit {spec.kind}: cross_entropy is for classes, the others are not"
        raise ConfigError(("loss", text))
    return LOSSES[name]


def check_name(name: str) -> None:
    """Raise ConfigError if no loss has this name.

    >>> ml.losses.check_name("hubert")
    Traceback (most recent call last):
    metalearn.errors.ConfigError: loss: unknown loss 'hubert'; did you mean 'huber'? ...
    """
    names = [*LOSSES, *FUNCTIONS]
    if name not in names:
        raise ConfigError(("loss", f"unknown loss {name!r}; {did_you_mean(name, names)}"))


def from_function(function: Function, spec: EpisodeSpec) -> Criterion:
    """Wrap a custom loss: (predictions, y) -> per-example losses [B, ...], or their mean [].

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> loss = ml.losses.from_function(torch.nn.L1Loss(reduction="none"), spec)
    >>> loss(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))
    tensor(2.)
    """

    _refuse_sum(function, (2, spec.outputs), (2,) if spec.classification else (2, spec.outputs))
    checked = set[tuple[torch.Size, torch.Size]]()

    def loss(
        predictions: Tensor, y: Tensor, weight: Tensor | None = None, batch_dims: int = 0
    ) -> Tensor:
        if batch_dims:
            dims = (0, 0) if weight is None else (0, 0, 0)
            args = (predictions, y) if weight is None else (predictions, y, weight)
            mapped = torch.func.vmap(partial(_call, loss, batch_dims - 1), in_dims=dims)
            losses: Tensor = mapped(*args)
            return losses
        if spec.classification:
            y = _classes(predictions, y)
        else:
            _same_axes(predictions, y)
        _refuse_class_axis(function, predictions, y)
        per_example = function(predictions, y)
        if per_example.dim() == 0 and weight is None:
            shapes = predictions.shape, y.shape
            if predictions.dim() > 2 and shapes not in checked and not _is_traced():
                _refuse_sum(function, *shapes)  # the form of such tasks is not known before
                checked.add(shapes)
            return per_example
        if per_example.dim() == 0 or per_example.shape[0] != y.shape[0]:
            shape, count = list(per_example.shape), y.shape[0]
            text = f"returns shape {shape} for {count} examples: it must return the "
            raise ConfigError(("loss", text + "loss of each, [B, ...], as reduction='none' does"))
        return _mean(per_example, weight, 0)

    return loss


def _refuse_sum(function: Function, outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    """Raise ConfigError for a function that sums over a batch: twice the batch, twice the loss.

    Does nothing if it does not accept a batch of these shapes, and inside a trace."""
    if _is_traced():
        return
    size = math.prod(outputs)
    p = torch.linspace(0.2, 0.7, size).reshape(outputs)
    y = torch.linspace(0.6, 0.3, math.prod(targets)).reshape(targets)
    if len(targets) < len(outputs):
        y = torch.arange(math.prod(targets)).reshape(targets) % outputs[-1]
    try:
        single, doubled = function(p, y), function(torch.cat([p, p]), torch.cat([y, y]))
        if single.dim() or doubled.dim():
            return
        sizes = float(single), float(doubled)
    except Exception:  # of a function for other shapes or types, which raises it when it is used
        return
    if math.isclose(sizes[1], 2 * sizes[0], rel_tol=1e-4) and abs(sizes[0]) > 1e-6:
        text = (
            "returns the sum over the examples, which grows with their number: it must return the "
        )
        raise ConfigError(("loss", text + "loss of each, reduction='none', or their mean"))


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _refuse_class_axis(function: Function, predictions: Tensor, y: Tensor) -> None:
    """Raise ConfigError if torch's cross entropy would use axis 1 of [B, *Y, C] as the classes."""
    inner = function.func if isinstance(function, partial) else function
    is_cross_entropy = inner in (F.cross_entropy, F.nll_loss)
    is_cross_entropy = is_cross_entropy or isinstance(inner, nn.CrossEntropyLoss | nn.NLLLoss)
    if is_cross_entropy and predictions.dim() > 2 and predictions.dim() == y.dim() + 1:
        text = (
            f"uses axis 1 of {list(predictions.shape)} as the class axis, but the classes are on "
        )
        text += (
            "the last axis: use loss='cross_entropy', or move the axis, predictions.movedim(-1, 1)"
        )
        raise ConfigError(("loss", text))


def _call(
    loss: Criterion, batch_dims: int, predictions: Tensor, y: Tensor, *weight: Tensor
) -> Tensor:
    return loss(predictions, y, weight[0] if weight else None, batch_dims)


def metrics(
    spec: EpisodeSpec,
    predictions: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    loss: Criterion | None = None,
) -> dict[str, Tensor]:
    """Detached `query_loss` and, for classes, `query_accuracy`.

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> ml.losses.metrics(spec, torch.zeros(2, 1), torch.ones(2, 1))
    {'query_loss': tensor(1.)}
    """
    predictions = predictions.detach()
    values = {"query_loss": (loss or criterion(spec))(predictions, y, weight)}
    if spec.classification:
        values["query_accuracy"] = accuracy(predictions, y, weight)
    return values


def _mean(per_example: Tensor, weight: Tensor | None, batch_dims: int) -> Tensor:
    """[*L, B, *Y] -> [*L], examples weighted by `weight` [*L, B]."""
    if weight is None:
        return per_example.mean(tuple(range(batch_dims, per_example.dim())))
    shape = per_example.shape[: batch_dims + 1]
    if weight.shape != shape:
        text = f"has shape {list(weight.shape)}, the examples have {list(shape)}"
        raise ConfigError(("weight", text))
    inner = tuple(range(batch_dims + 1, per_example.dim()))
    examples = per_example.mean(inner) if inner else per_example
    # where, not a product: the loss of padding may not be finite
    masked = torch.where(weight > 0, examples, torch.zeros_like(examples))
    return (weight * masked).sum(-1) / weight.sum(-1)


def _values(predictions: Tensor, y: Tensor) -> Tensor:
    """Return targets of the predictions' shape; true counts as 1, false as 0."""
    _same_shape(predictions, y)
    return y.to(predictions.dtype) if y.dtype == torch.bool else y


def _same_shape(predictions: Tensor, y: Tensor) -> None:
    if predictions.shape == y.shape:
        return
    text = f"have shape {list(y.shape)}, the predictions have {list(predictions.shape)}"
    hint = ": add a last axis, y[..., None]" if predictions.shape == (*y.shape, 1) else ""
    if (*predictions.shape, 1) == y.shape:
        hint = ": keep the last axis of the predictions, out without .squeeze()"
    raise ConfigError(("targets", text + (hint or "; both must be equal")))


def _same_axes(predictions: Tensor, y: Tensor) -> None:
    """Raise ConfigError for shapes that broadcast; other sizes may differ, as of mean and std."""
    pairs = zip(predictions.shape, y.shape, strict=False)
    if predictions.dim() != y.dim() or any(a != b and 1 in (a, b) for a, b in pairs):
        _same_shape(predictions, y)


def _classes(logits: Tensor, y: Tensor) -> Tensor:
    """Return the labels as int64; raises ConfigError if they do not fit the logits."""
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        text = f"are {str(y.dtype).removeprefix('torch.')}: classes are integers 0 .. C-1"
        raise ConfigError(("labels", text))
    if logits.shape[:-1] != y.shape:
        text = f"have shape {list(y.shape)}, the outputs have {list(logits.shape)}"
        why = "labels [B, *Y] need outputs [B, *Y, C], the classes on the last axis"
        raise ConfigError(("labels", f"{text}: {why}"))
    return y if y.dtype == torch.int64 else y.long()
